"""Compare, on folders that are written as runs leave them; on those of a real run: test_report.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_1samp, ttest_ind

from harness.after.verdict import Interval, interval
from harness.tools import compare

RANDOM = np.random.default_rng(0)
FLAT = [0.0, 1.0] * 8
REPORT = {"Report": {"attributes": {"seconds": 90.0}}}


@pytest.fixture(autouse=True)
def terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def a_run(folder: str, rewards: dict[str, tuple[float, list]], steps=40, ask=0, gain=0, **sections) -> str:
    """A run with each reward's weight and its scores after training, of the questions from number `ask` on."""
    (path := Path(folder)).mkdir()
    settings = {"rewards": {name: {"weight": weight} for name, (weight, _) in rewards.items()}}
    (path / "config.yaml").write_text(yaml.safe_dump(settings | sections))
    logs = []
    for step in range(5, steps + 1, 5):
        logs.append({"step": step, "reward": 7.0, **{f"rewards/{name}/mean": step for name in rewards}})
        logs.append({"step": step + 2, "eval_reward": 1.0})
    (path / "rewards.py").touch()
    (path / "run.json").write_text('{"placebo": false}')
    state = {"global_step": steps, "log_history": logs, "stateful_callbacks": REPORT}
    (path / "trainer_state.json").write_text(json.dumps(state))
    with (path / "samples.jsonl").open("w") as file:
        for i, row in enumerate(zip(*(scores for _, scores in rewards.values()), strict=True)):
            sample = {"question": f"{ask + i}?", "held_out": True}
            for side, less in (("before", gain), ("after", 0)):
                scores = [score - less if less else score for score in row]
                sample[side] = {"completion": "", "rewards": dict(zip(rewards, scores, strict=True))}
            file.write(json.dumps(sample) + "\n")
    return folder


def rows(capsys, *runs: str) -> list[list[str]]:
    """The cells of each line that compare prints of its tables, heads and lines between them aside."""
    compare.main([*runs])
    out = capsys.readouterr().out
    assert "…" not in out  # nothing is cut off
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]


def test_differences_are_of_the_questions_that_both_runs_have(capsys):
    easy = RANDOM.normal(0, 3, 16)
    one, two = (easy + RANDOM.normal(0, 0.3, 16) for _ in range(2))
    first = a_run("a", {"r": (1, list(one))})
    runs = [  # scores, number of the first question, how many both have, which difference is said
        (two + 0.5, 0, "16, paired", interval(two + 0.5 - one, [one, two])),
        (two + 0.5, 99, "different", "–"),
        ([None] * 6 + list(two[6:]), 4, "12, paired", interval(two[6:12] - one[10:], [one, two])),
    ]
    others = [a_run(f"b{i}", {"r": (1, list(scores))}, ask=ask) for i, (scores, ask, *_) in enumerate(runs)]
    assert ["questions", *(paired for _, _, paired, _ in runs)] in rows(capsys, first, *others)
    for other, (*_, difference) in zip(others, runs, strict=True):
        assert ["r", str(difference)] in rows(capsys, first, other)
    assert runs[0][-1].low > 0 and str(runs[0][-1]).startswith("+0.")  # which pairing makes plain


def test_totals_only_of_the_same_weights_and_the_last_20_steps_where_there_are_as_many(capsys):
    rewards = {"think_format_reward": (2, FLAT), "soft_overlong": (1, FLAT)}
    first, short, odd = a_run("a" * 70, rewards), a_run("b", rewards, steps=10), a_run("c", rewards, steps=38)
    assert ["means of", "10 steps", "last 23 of 38"] in rows(capsys, short, odd)
    found = rows(capsys, first, short)
    assert ["means of", "last 20 of 40", "10 steps"] in found and ["think_format", "32.50", "7.50"] in found
    trained, level, difference = [cells[1:] for cells in found if cells[0] == compare.TOTAL]
    assert trained == ["7.00", "7.00"] and level == ["1.50 (0.78 to 2.22)"] * 2
    assert difference == [str(interval([0.0] * 16, [3 * score for score in FLAT]))]
    heavier = rows(capsys, first, a_run("d", rewards | {"soft_overlong": (3, FLAT)}))
    assert ["rewards.soft_overlong.weight", "1", "3"] in heavier and compare.TOTAL not in [row[0] for row in heavier]


def test_no_interval_of_a_level_leaves_what_the_scores_allow(capsys):
    other = a_run("other", {"q": (1, FLAT)})
    few, right, emoji = [1.0] * 3 + [0.0] * 12, [1.0] * 64, [4.0] * 64
    for scores, gain, shown in (  # Wilson's with 1.96 would be 0.070 to 0.45, 0.94 to 1, 3.77 to 4
        (few, 0, "0.20 (0.062 to 0.49)"),
        (right, 0, "1.00 (0.94 to 1.00)"),
        (emoji, 4, "4.00 (3.77 to 4.00)"),
        ([0.0] * 64, -4, "0.00 (0.00 to 0.23)"),  # it has been 4
        ([-score for score in few], 0, "-0.20 (-0.49 to -0.062)"),
        ([0.0] * 64, 0, "0.00 (0.00 to 0.00)"),
        (few[:7], 0, "0.43 (too few for an interval)"),
    ):
        assert ["r", shown, "–"] in rows(capsys, a_run(shown, {"r": (1, scores)}, gain=gain), other)


def test_runs_that_differ_by_their_seed_alone_and_their_placebos(capsys):
    gains, by_chance = [0.5, 0.6, 0.7], [0.0, 0.2]
    runs = [a_run(f"s{i}", {"r": (1, FLAT)}, gain=gain, training={"seed": i}) for i, gain in enumerate(gains)]
    placebos = [a_run(f"p{i}", {"r": (1, FLAT)}, gain=gain, training={"seed": i}) for i, gain in enumerate(by_chance)]
    for placebo in placebos:
        Path(placebo, "run.json").write_text('{"placebo": true}')
    again = a_run("again", {"r": (1, FLAT)}, gain=0.7, training={"seed": 2})
    other = a_run("other", {"r": (1, FLAT)}, gain=0.1, training={"seed": 7, "learning_rate": 1})
    edited = a_run("edited", {"r": (1, FLAT)}, gain=0.1, training={"seed": 8})
    Path(edited, "rewards.py").write_text("other rewards")
    compare.main([*runs, *placebos, again, other, edited])
    lines = capsys.readouterr().out.replace("\n", " ")
    seeds, welch = ttest_1samp(gains, 0).confidence_interval(), ttest_ind(gains, by_chance, equal_var=False)
    assert f" 3 seeds (s0, ...): r {Interval(0.6, *seeds)} " in lines and " 2 placebos (p0, ...): r +0.10 (" in lines
    assert f" more than 2 placebos: r {Interval(0.5, *welch.confidence_interval())} " in lines
    assert rows(capsys, runs[0], placebos[0])[-1] == ["--placebo", "False", "True"]
    compare.main([runs[2], a_run("alike", {"r": (1, FLAT)}, gain=0.7, training={"seed": 8})])
    assert "2 seeds (s2, ...): r +0.70 (all alike" in capsys.readouterr().out


def test_a_run_without_its_answers_has_only_its_log(capsys):
    first, lost = (a_run(name, {"r": (1, FLAT)}) for name in "ab")
    (Path(lost) / "samples.jsonl").write_text('{"question"')
    compare.main([first, lost])
    out = capsys.readouterr().out
    assert "note: b: has no samples.jsonl" in out and "no verdict" in out


def test_settings_that_differ_are_shown(capsys):
    same = {"rewards": {"r": (1, FLAT)}, "model": {"dtype": "auto"}}
    found = rows(capsys, a_run("a", **same, lora=None), a_run("b", **same, lora={"r": 4}))
    assert ["minutes", "1.5", "1.5"] in found and found[-1] == ["lora.r", "–", "4"] and "dtype" not in str(found)
