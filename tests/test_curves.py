"""The curves: what is drawn, read from the figure, of logs made by hand."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from harness.after import curves

WEIGHTS = {"right": 1, "cheap": -1}


def logs(steps: int, **more: float) -> list[dict]:
    ends = {"rewards/right/min": 0, "rewards/right/max": 1, "rewards/cheap/min": -5, "rewards/cheap/max": -1}
    means = {"rewards/cheap/mean": -2.0, "rewards/right/mean": 0.9, "reward": 2.8}
    spreads = {"rewards/right/std": 0.3, "rewards/cheap/std": 4.0, "reward_std": 9.0}
    return [{"step": step} | ends | means | spreads | more for step in range(1, steps + 1)]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The panels of what is drawn, by the beginning of their headings."""
    figures = []
    save = Figure.savefig

    def kept(figure, *args, **more):
        figures.append(figure)
        save(figure, *args, **more)

    monkeypatch.setattr(Figure, "savefig", kept)

    def draw(runs: dict[str, list[dict]], weights: dict[str, float]) -> dict:
        curves.draw_curves(runs, weights, tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 10_000
        return {axes.get_title(loc="left").split()[0]: axes for axes in figures[-1].axes}

    return draw


def band(axes) -> tuple[float, float]:
    return axes.collections[0].get_paths()[0].get_extents().intervaly


def test_the_band_ends_where_scores_do(drawn):
    panels = drawn({"": logs(3)}, WEIGHTS)
    ends = [band(panels[name]) for name in ("right", "cheap", "total")]
    assert np.allclose(ends, [(0.6, 1), (-5, -1), (1, 6)])  # the last of right - cheap
    unbounded = [{key: log[key] for key in log if not key.endswith(("min", "max"))} for log in logs(3)]
    assert np.allclose(band(drawn({"": unbounded}, WEIGHTS)["right"]), (0.6, 1.2))


def test_a_panel_each_in_the_order_of_the_weights(drawn):
    panels = drawn({"": logs(120) + [{"step": 60, "eval_reward": 3.0}]}, WEIGHTS)
    assert list(panels) == ["right", "cheap", "total"]  # and none of what was not logged
    line, points, evaluation = panels["total"].lines
    assert len(line.get_xdata()) == len(points.get_xdata()) == 120 and line.get_linestyle() == "-"
    assert evaluation.get_xydata().tolist() == [[60, 3.0]] and panels["cheap"].get_title("left") == "cheap (weight -1)"
    untitled = logs(3, **{"kl": 0.1, "rewards/new/mean": 1.0})
    panels = drawn({"": untitled}, {})  # in the order of the log
    assert list(panels) == ["cheap", "right", "new", "KL:"]
    panels = drawn({"": untitled}, WEIGHTS | {"new": 2, "never": 1})
    assert list(panels) == ["right", "cheap", "new", "total", "KL:"]
    assert panels["KL:"].get_position().x1 == panels["cheap"].get_position().x1  # the last one fills its row
    for values, spread in (([0, 1] * 8, 0.2), (range(16), 15)):  # smoothed, and at its ends not behind
        history = [{"step": i, "reward": value} for i, value in enumerate(values)]
        line, points = drawn({"": history}, WEIGHTS)["total"].lines
        assert np.ptp(line.get_ydata()) == pytest.approx(spread) and list(points.get_ydata()) == list(values)


def test_runs_are_named_once_and_texts_stand_as_they_are(drawn):
    runs = {"first": logs(3), "$a$ and $b$": logs(1)}
    panels = drawn(runs, {})
    assert "total" not in panels  # of other weights
    (legend,) = panels["right"].figure.legends
    texts = legend.get_texts()
    assert [text.get_text() for text in texts] == list(runs)
    assert not any(text.get_parse_math() for text in texts)
    colours = [handle.get_color() for handle in legend.legend_handles]
    assert [line.get_color() for line in panels["right"].lines[::2]] == colours and not panels["right"].collections
