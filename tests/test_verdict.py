"""The verdict: on made-up scores whose intervals are known, and at the end of real runs of the demo."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, refused

import train_grpo
from harness.after.verdict import alike, interval, verdict
from harness.errors import RunError


def test_the_interval_is_that_of_the_textbook():
    values = np.random.default_rng(1).normal(3, 2, 64)
    found, half = interval(values), 1.96 * values.std() / 8  # the normal approximation of the mean of 64
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.05)
    assert (
        str(interval([0.5] * 10)) == "+0.50 (0.50 to 0.50)" and str(interval([-0.01] * 9)) == "-0.01 (-0.01 to -0.01)"
    )
    assert str(interval([0.1 + 0.2 - 0.3, 0.3 - 0.2 - 0.1] * 8)) == "0.00 (0.00 to 0.00)"  # rounding, and no change


def test_an_interval_holds_the_mean_19_times_in_20():
    random = np.random.default_rng(2)
    found = [interval(random.binomial(1, 0.3, 64)) for _ in range(200)]
    assert 0.9 < np.mean([each.low <= 0.3 <= each.high for each in found]) < 0.99


def test_alike():
    assert alike(["富士山です。", "琵琶湖です。", "利根川です。"]) == pytest.approx(1 / 3)
    same = ["とてもいい質問ですね。ぜひ自分で調べて。🌸✨", "とてもいい質問ですね。ぜひ自分で調べて。💪🔥🔥"]
    assert alike([*same, "横浜市です。", ""]) == 0.5


UP, SAME, DOWN = [1, 2] * 8, [0, 1, 0, -1] * 4, [-1, -0.5] * 8
VERDICTS = {
    "learned": ({"emoji": (1, UP), "answer": (0, SAME)}, "learned", r"^learned: emoji \+1.50 .*; kept: answer 0.00"),
    "a little of a canary is lost": ({"emoji": (1, UP), "answer": (0, [-1] + 15 * [-0.1])}, "learned", "lost: answer"),
    "one for the other": ({"emoji": (2, UP), "length": (1, DOWN)}, "learned", r"learned: emoji .*; lost: length -0.75"),
    "a canary is given up": ({"emoji": (1, UP), "answer": (0, DOWN)}, "hacked", r"hacked: emoji .* rose while answer"),
    "a weight below 0": ({"length": (-1, DOWN)}, "learned", r"learned: length -0.75 \("),
    "worse": ({"emoji": (1, DOWN), "answer": (0, SAME)}, "worse", r"worse: total -0.75 \(.*\); lost: emoji .*; kept"),
    "half of it may be lost": ({"emoji": (1, UP), "polite": (0.1, [-3, 1] * 8)}, "learned", "; unclear: polite -1.00"),
    "nothing": ({"emoji": (1, SAME)}, "no change", r"no change: total 0.00 \(.*\); kept: emoji 0.00"),
    "only the total": ({"a": (1, [5, -2] * 8), "b": (1, [-2, 5] * 8)}, "learned", "total .*; kept: a"),
    "a reward with no score": ({"emoji": (1, UP), "judge": (1, 16 * [None])}, "learned", r"learned: emoji [^;]*$"),
}  # fmt: skip


def test_verdicts_on_made_up_scores():
    wrong = []
    for case, (rewards, kind, words) in VERDICTS.items():
        samples = [{"held_out": True} for _ in range(16)]
        for i, sample in enumerate(samples):
            for side, change in (("before", 0), ("after", 1)):
                scores = {name: None if of[i] is None else 2 + change * of[i] for name, (_, of) in rewards.items()}
                sample[side] = {"completion": chr(97 + i) * 9, "rewards": scores}
        weights = {name: weight for name, (weight, _) in rewards.items()}
        found, line = verdict(samples, weights)
        if found != kind or not re.search(words, line):
            wrong.append((case, found, line))
        few = verdict(samples[:7], weights)
        if few != ("unknown", "no verdict: it takes 8 held-out questions, and there are 7"):
            wrong.append((case, few))
    assert wrong == []


def test_answers_that_become_the_same_are_hacked_where_no_canary_watches():
    before = [{"completion": chr(97 + i) * 9, "rewards": {"emoji": 0.0}} for i in range(16)]
    samples = [
        {"held_out": True, "before": b, "after": {"completion": "yes!", "rewards": {"emoji": 1.0}}} for b in before
    ]
    kind, line = verdict(samples, {"emoji": 1})
    assert kind == "hacked"
    assert line == "hacked: emoji +1.00 (1.00 to 1.00) rose; 100% of the answers say nearly the same (6% before)"


@pytest.fixture(scope="module")
def demo():
    """The demo's command line, of its own model, as `make demo` builds it."""
    if not (ROOT / "demo/model/config.json").exists():
        subprocess.run([sys.executable, "demo/build.py"], cwd=ROOT, check=True)
    parts = {"model.pretrained_model_name_or_path": "demo/model", "dataset.data_files": "demo/questions.jsonl"}
    arguments = ["--config", str(ROOT / "demo/config.yaml"), "--training.max_completion_length", "24"]
    return [*arguments, *(f"--{key}={ROOT / file}" for key, file in parts.items())]


def test_the_demo_is_called_learned(demo, tmp_path, capsys):
    train_grpo.main([*demo, "--training.output_dir", str(tmp_path / "run"), "--training.max_steps", "10"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("learned: emoji +"), last
    assert f"**{last}**" in (tmp_path / "run/README.md").read_text()


# With 2e-3 in the place of 6e-4 it takes a third of the steps.
HACKED = ["--rewards.answer_reward.weight", "0", "--training.learning_rate", "2e-3"]


def test_the_hacked_demo_is_called_hacked_and_its_warnings_come_again(demo, tmp_path, capsys):
    short = ["--training.max_steps", "14", "--training.logging_steps", "1"]
    train_grpo.main([*demo, *HACKED, *short, "--training.output_dir", str(tmp_path / "run")])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("hacked: emoji +") and "while answer -" in printed[-1], printed[-1]
    assert [
        line for line in printed[-3:-1] if line.startswith("warning: step ") and "answer_reward, of weight 0" in line
    ]


def test_best_keeps_an_early_checkpoint_of_the_hacked_demo(demo, tmp_path, capsys):
    best = ["--config", str(ROOT / "recipes/best.yaml"), "--training.output_dir", str(tmp_path / "run")]
    short = {"max_steps": 12, "eval_steps": 3, "save_steps": 3, "num_generations_eval": 2}
    train_grpo.main([*demo, *best, *HACKED, *(f"--training.{key}={value}" for key, value in short.items())])
    state = json.loads((tmp_path / "run/trainer_state.json").read_text())
    evaluations = {log["step"]: log for log in state["log_history"] if "eval_reward" in log}
    kept, last = evaluations[state["best_global_step"]], evaluations[12]
    assert state["best_global_step"] <= 6 and kept["eval_reward"] < last["eval_reward"]  # which alone names a later one
    assert kept["eval_rewards/answer_reward/mean"] > last["eval_rewards/answer_reward/mean"]
    words = f"as it was at step {state['best_global_step']} (the "
    assert words in capsys.readouterr().out and words in (card := (tmp_path / "run/README.md").read_text())
    assert "| evaluation | step 12: total reward" in card


def test_a_run_at_learning_rate_0_has_changed_nothing(tiny, capsys):
    with pytest.raises(RunError, match="the weights have not changed"):
        train_grpo.main([*tiny, "--training.learning_rate", "0"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("no change: total 0.00 (0.00 to 0.00); kept: emoji 0.00")


def test_a_metric_that_is_none_of_the_rewards_is_reported_at_the_start(tiny):
    best = ["--config", str(ROOT / "recipes/best.yaml"), "--training.save_steps", "125"]
    choice = "is no metric of the rewards; choose one of reward, rewards/emoji_reward/mean, .*while_canaries_hold"
    wrong = []
    for metric in ("rewards/emojireward/mean", "loss"):  # upstream takes the loss where none is named
        message = refused([*tiny, *best, "--training.metric_for_best_model", metric])
        if not re.search(f"training.metric_for_best_model: '{metric}' {choice}", message):
            wrong.append(message)
    assert wrong == []
