"""Compare, on folders that are written as runs leave them; on those of a real run: test_report.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.after.verdict import interval, interval_between
from harness.tools import compare

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def on_a_terminal_of_80_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def a_run(folder: str, rewards: dict[str, tuple[float, list[float]]], steps: int = 40, ask: int = 0, **sections) -> str:
    """A run with each reward's weight and its scores after training, of the questions from number `ask` on."""
    path = Path(folder)
    path.mkdir()
    settings = {"rewards": {name: {"weight": weight} for name, (weight, _) in rewards.items()}}
    (path / "config.yaml").write_text(yaml.safe_dump(settings | sections))
    logs = [
        {"step": step, "reward": 7.0, **{f"rewards/{name}/mean": step for name in rewards}}
        for step in range(5, steps + 1, 5)
    ]
    (path / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": logs}))
    with (path / "samples.jsonl").open("w") as file:
        for i, row in enumerate(zip(*(scores for _, scores in rewards.values()), strict=True)):
            side = {"completion": "", "rewards": dict(zip(rewards, row, strict=True))}
            sample = {"question": f"{ask + i}?", "held_out": True, "before": None, "after": side}
            file.write(json.dumps(sample) + "\n")
    return folder


def rows(capsys, *runs: str) -> list[list[str]]:
    """The cells of each line that compare prints of its tables, heads and lines between them aside."""
    compare.main([*runs])
    return [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line
    ]


def test_two_runs_differ_by_so_much_paired_where_the_questions_are_the_same(capsys):
    easy = RANDOM.normal(0, 3, 16)
    one, two = (easy + RANDOM.normal(0, 0.3, 16) for _ in range(2))
    first, other = a_run("a", {"r": (1, list(one))}), a_run("b", {"r": (1, list(two + 0.5))})
    found = rows(capsys, first, other)
    assert ["questions", "16, paired"] in found and ["r", str(interval(two + 0.5 - one, [one, two]))] in found
    assert str(interval(two + 0.5 - one)).startswith("+0.") and interval(two + 0.5 - one).low > 0
    apart = interval_between(one, two + 0.5)
    others = rows(capsys, first, a_run("c", {"r": (1, list(two + 0.5))}, ask=99))
    assert ["questions", "other ones, not paired"] in others and ["r", str(apart)] in others
    assert apart.low < -1 and apart.high > 1  # which pairing has taken out


def test_an_interval_between_other_questions_misses_once_in_20_runs():
    drawn = [(RANDOM.normal(size=n), RANDOM.binomial(1, 0.5, size=m) - 0.5) for n, m in [(64, 12), (16, 32)] * 300]
    missed = np.mean([not (each := interval_between(*sides)).low <= 0 <= each.high for sides in drawn])
    assert 0.02 < missed < 0.08


def test_totals_only_where_the_weights_are_the_same_and_the_last_20_steps_where_there_are_as_many(capsys):
    scores = [0.0, 1.0] * 8
    first, short = a_run("a", {"r": (1, scores)}), a_run("b", {"r": (1, scores)}, steps=10)
    found = rows(capsys, first, short)
    assert ["steps", "the last 20 of 40", "all 10"] in found and ["r", "32.50", "7.50"] in found
    assert [cells[0] for cells in found].count("total") == 3
    heavier = rows(capsys, first, a_run("c", {"r": (2, scores)}))
    assert "total" not in [cells[0] for cells in heavier] and ["rewards.r.weight", "1", "2"] in heavier


def test_a_run_that_has_left_only_its_log(capsys):
    folder = a_run("a", {"r": (1, [0.0] * 8)})
    (Path(folder) / "config.yaml").unlink()
    assert ["total", "7.00"] in rows(capsys, folder)


def test_six_rewards_on_80_columns(capsys):
    names = ["emoji_reward", "length_reward", "answer_reward", "polite_reward", "soft_overlong", "think_format_reward"]
    runs = [a_run(run, {name: (1, list(RANDOM.normal(0, 1, 16))) for name in names}) for run in ("first", "second")]
    found = rows(capsys, *runs)
    for name in ("emoji", "length", "answer", "polite", "soft_overlong", "think_format"):
        cells = [line[1:] for line in found if line[0] == name]
        assert [len(line) for line in cells] == [2, 2, 1] and all(
            cell.endswith(")") for line in cells[1:] for cell in line
        )


def test_what_nobody_set_does_not_differ(capsys):
    """A run records defaults of ours; one of an older version, or of JSONL, has others of them."""
    data = {"path": "csv", "data_files": "q.csv", "split": "train", "index_col": False}
    new = {"dataset": data, "prompts": {"column": "q", "drop_empty": False, "system": None}, "lora": None}
    old = {"dataset": {"path": "csv", "data_files": "old.tsv", "delimiter": "\t"}, "prompts": {"column": "q"}}
    lora = {"dataset": data, "prompts": {"column": "q", "drop_empty": True}, "lora": {"r": 4}}
    runs = [a_run(name, {"r": (1, [0.0] * 8)}, **of) for name, of in (("a", new), ("b", old), ("c", lora))]
    assert rows(capsys, *runs)[-3:] == [
        ["dataset.data_files", "q.csv", "old.tsv", "q.csv"],
        ["lora.r", "–", "–", "4"],
        ["prompts.drop_empty", "False", "False", "True"],
    ]
