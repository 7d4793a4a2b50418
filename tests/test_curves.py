"""The curves: what is drawn, read from the figure, of logs made by hand."""

import json
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from harness.after import fonts
from harness.after.curves import draw_curves, earlier_logs
from harness.run_folder import RunFolder

TITLES = {"right": "答えが正しければ1点、違えば0点", "cheap": "costs $5 or $6^{a}$, not $7"}


def logs(steps: int) -> list[dict]:
    ends = {"rewards/right/min": 0, "rewards/right/max": 1, "rewards/cheap/min": -5, "rewards/cheap/max": -1}
    means = {"rewards/right/mean": 0.9, "rewards/cheap/mean": -2.0, "reward": 2.8}
    spreads = {"rewards/right/std": 0.3, "rewards/cheap/std": 4.0, "reward_std": 9.0}
    return [{"step": step} | ends | means | spreads for step in range(1, steps + 1)]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The axes of what is drawn; a warning of matplotlib's, of a character that no font has, is an error."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: figures.append(self) or save(self, *args, **more)
    )

    def draw(history: list[dict], label: str = "", titles: dict[str, str] = TITLES) -> list:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            draw_curves({label: history}, titles, tmp_path / "a.png", {"right": 1, "cheap": -1})
        assert (tmp_path / "a.png").stat().st_size > 10_000
        return figures[-1].axes

    return draw


def test_the_band_ends_where_scores_do(drawn):
    ends = [axes.collections[0].get_paths()[0].get_extents().intervaly for axes in drawn(logs(3))[:3]]
    assert np.allclose(ends, [(0.6, 1), (-5, -1), (1, 6)])  # of right, of cheap, and of right - cheap
    unbounded = [{key: log[key] for key in log if not key.endswith(("min", "max"))} for log in logs(3)]
    assert np.allclose(drawn(unbounded)[0].collections[0].get_paths()[0].get_extents().intervaly, (0.6, 1.2))


def test_texts_are_drawn_as_they_stand(drawn):
    axes = drawn(logs(3), "$a$ and $b$")
    label = axes[0].get_ylabel().replace("\n", "")
    assert label in ("答えが正しければ1点", "????????1? (install a font for it)")  # as this machine has fonts
    assert axes[1].get_ylabel() == "costs $5 or $6^{a}$" and not axes[1].yaxis.label.get_parse_math()
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["$a$ and $b$", "± 1 standard deviation"]
    assert not any(text.get_parse_math() for text in legend.get_texts())


def test_a_machine_without_the_font_says_so(drawn, monkeypatch):
    monkeypatch.setattr(fonts.font_manager, "findSystemFonts", list)
    label = drawn(logs(3), "実験")[0].get_ylabel().replace("\n", "")
    assert label.startswith("????????1? (install a font")


def test_a_run_that_goes_on_from_another_is_drawn_whole(drawn, tmp_path):
    models = {"first": "owner/model", "second": "first", "third": "second", "circle": "circle", "damaged": "broken"}
    for name, model in models.items():
        (tmp_path / name).mkdir()
        config = {"model": {"pretrained_model_name_or_path": str(tmp_path / model)}, "rewards": {}}
        (tmp_path / name / "config.yaml").write_text(json.dumps(config))
        state = {"global_step": 4, "log_history": logs(3) + [{"step": 4, "train_runtime": 1.0}]}
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/trainer_state.json").write_text("{")
    steps = {name: [log["step"] for log in earlier_logs(RunFolder(tmp_path / name))] for name in models}
    assert steps["third"] == [-7, -6, -5, -4, -3, -2, -1, 0] and steps["second"] == [-3, -2, -1, 0]
    assert steps["first"] == steps["circle"] == steps["damaged"] == []
    line = drawn(earlier_logs(RunFolder(tmp_path / "third")) + logs(3))[0].lines[0]
    assert list(line.get_xdata()) == [-7, -6, -5, -3, -2, -1, 1, 2, 3]


def test_runs_are_compared_by_reward_against_kl_and_named_once(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: figures.append(self) or save(self, *args, **more)
    )
    other = [{"step": 1, "rewards/cheap/mean": -1.0, "reward": 1.0, "kl": 0.5}]
    runs = {"first": [log | {"kl": log["step"] / 10} for log in logs(3)], "second": other}
    draw_curves(runs, TITLES, tmp_path / "two.png")
    panels = {axes.get_title(loc="left"): axes for axes in figures[-1].axes}
    (against,) = (axes for title, axes in panels.items() if title.startswith("total reward against KL"))
    assert [line.get_xydata().tolist() for line in against.lines] == [
        [[0.1, 2.8], [0.2, 2.8], [0.3, 2.8]],
        [[0.5, 1.0]],
    ]
    draw_curves(runs, TITLES, tmp_path / "two.png", totals=False)  # of other weights
    assert not any("total" in axes.get_title(loc="left") for axes in figures[-1].axes)
    (legend,) = figures[-1].legends
    assert [text.get_text() for text in legend.get_texts()] == ["first", "second"]
    colours = {name: handle.get_color() for name, handle in zip(runs, legend.legend_handles, strict=True)}
    assert [line.get_color() for line in against.lines] == list(colours.values())
