"""The verdict: on made-up scores whose intervals are known, and at the end of real runs of the demo."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import train_grpo
from harness.after.verdict import WORDS, alike, interval, likely_reason, verdict
from harness.errors import RunError


def test_the_interval_is_that_of_the_textbook():
    values = np.random.default_rng(1).normal(3, 2, 64)
    for n, t in ((8, 2.3646), (16, 2.1314), (64, 1.9983)):
        found, half = interval(values[:n]), t * values[:n].std(ddof=1) / n**0.5
        assert found.mean == pytest.approx(values[:n].mean())
        assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.001)


def test_an_interval_of_equal_values_knows_that_not_all_questions_were_asked():
    ends = [  # values, scores they are the differences of, and the interval: 3 of n may be otherwise
        ([0.5] * 10, None, "+0.50 (0.35 to 0.50)"),  # of what was seen, 0.5 is the most that a score can be
        ([0.0] * 12, [1.0], "0.00 (-0.25 to 0.25)"),
        ([0.0] * 12, [0.0], "0.00 (0.00 to 0.00)"),
        ([1.0] * 11 + [0.5], [0.0, 1.0], "+0.96 (0.87 to 1.00)"),
        ([0.1, 0.2, -0.3] * 4, None, "0.00 (-0.14 to 0.14)"),  # whose sum is 0 but for its last digit
        ([0.5] * 7, None, "+0.50 (too few for an interval)"),
    ]
    assert [str(interval(values, scores)) for values, scores, _ in ends] == [words for *_, words in ends]


UP, SAME, DOWN = [1, 2] * 8, [0, 0.1, 0, -0.1] * 4, [-1, -0.5] * 8
VERDICTS = {  # weight of each reward and its changes from 1 and 3 in turn, the verdict's word, and its line
    "learned": ({"emoji": (1, UP), "answer": (0, SAME)}, "learned", r"^learned.*; unchanged: answer 0.00 [^;]*$"),
    "a little of a canary is lost": ({"emoji": (1, UP), "answer": (0, [-1] + 15 * [-0.1])}, "learned", "lost: answer"),
    "one for the other": ({"emoji": (2, UP), "length": (1, DOWN)}, "learned", r": emoji .*; lost: length -0.75"),
    "a canary is given up": ({"emoji": (1, UP), "answer": (0, DOWN)}, "hacked", r": emoji .* rose while answer"),
    "lost": ({"emoji": (1, DOWN), "answer": (0, SAME)}, "lost", r": emoji -0.75 .*; unchanged: answer"),
    "half of it may be lost": ({"emoji": (1, UP), "polite": (0, [-3, 1] * 8)}, "learned", "; unclear: polite -1.00"),
    "nothing": ({"emoji": (1, SAME), "answer": (0, SAME)}, "unchanged", r": emoji 0.00 .*, answer"),
    "a canary that rose": ({"emoji": (1, SAME), "answer": (0, UP)}, "unchanged", r": emoji 0.00 .*; learned: answer"),
    "less is better": ({"length": (-1, DOWN), "answer": (0, SAME)}, "learned", r": length -0.75 .*; unchanged: answer"),
    "equal, of few": ({"emoji": (1, UP[:9]), "answer": (1, [0] * 9)}, "learned", "; unclear: answer 0.00"),
    "perhaps something": ({"emoji": (1, [4, -3] * 8)}, "unclear", r"^unclear in this run: emoji \+0.50"),
    "no total": ({"a": (1, UP), "b": (1, [-1, -2] * 8)}, "unclear", r": total 0.00 .*; learned: a .*; lost: b"),
    "only the total": ({"a": (1, [5, -2] * 8), "b": (1, [-2, 5] * 8)}, "learned", r": total .*; unclear: a"),
    "a reward with no score": ({"emoji": (1, UP), "judge": (1, 16 * [None])}, "learned", ": emoji [^;]*; .*: judge$"),
    "no score at all": ({"judge": (1, 16 * [None])}, "unknown", "no verdict: .* 8 answers"),
}  # fmt: skip


def made_up(changes: dict[str, list[float | None]]) -> list[dict]:
    """Lines of samples.jsonl, one for each change of the scores from 1 and 3 in turn; each answer is another one."""
    samples = []
    for i, row in enumerate(zip(*changes.values(), strict=True)):
        change = dict(zip(changes, row, strict=True))
        before = {name: None if change[name] is None else 1 + i % 2 * 2 for name in change}
        after = {name: None if change[name] is None else before[name] + change[name] for name in change}
        sample = {"held_out": True, "before": {"completion": chr(0x4E00 + i) * 9, "rewards": before}}
        samples.append(sample | {"after": {"completion": chr(0x5E00 + i) * 9, "rewards": after}})
    return samples


def test_verdicts_on_made_up_scores():
    wrong = []
    for case, (rewards, word, words) in VERDICTS.items():
        samples = made_up({name: changes for name, (_, changes) in rewards.items()})
        weights = {name: weight for name, (weight, _) in rewards.items()}
        found = verdict(samples, weights)
        if found.word != word or not re.search(words, found.line) or not set(found.explained()) <= set(WORDS):
            wrong.append((case, found))
    few = verdict(samples[:7], weights)
    assert wrong == [] and few.word == "unknown" and few.line.startswith("no verdict: ") and "7" in few.line


def test_means_before_and_after():
    found = verdict(made_up({"emoji_reward": [1] * 12 + [-0.5] * 2 + [0] * 2}), {"emoji_reward": 1})
    (emoji,) = found.changes
    assert (emoji.name, emoji.before, emoji.after) == ("emoji", 2, 2.6875)
    assert (found.total.before, found.total.after) == (2, 2.6875)


def test_a_reward_that_tells_no_answer_from_another_is_not_learned_and_one_answer_to_all_is_a_hack():
    samples = made_up({"emoji": [1] * 16})
    for sample in samples:
        sample["after"]["completion"] = "yes!"
    line = "hacked in this run: emoji +1.00 (0.50 to 1.50) rose; 100% of the answers say nearly the same (6% before)"
    assert verdict(samples, {"emoji": 1}).line == line
    same = ["とてもいい質問ですね。ぜひ自分で調べて。🌸✨", "とてもいい質問ですね。ぜひ自分で調べて。💪🔥🔥"]
    assert alike([*same, "横浜市です。", ""]) == 0.5
    for sample in samples:
        sample["before"]["rewards"] = sample["after"]["rewards"] = {"constant": 1.0}
    assert verdict(samples, {"constant": 1}).line.startswith("unchanged in this run: constant 0.00 (-0.19 to 0.19)")


LOG = {"frac_reward_zero_std": 0.1, "kl": 0.5}
REASONS = [  # of a run's last log, its steps, whether a weight moved, the plan's doubts, and what is said
    ({}, 200, False, [], "no step has moved a weight; see learning_rate and model.dtype"),
    ({"frac_reward_zero_std": 1.0}, 20, False, ["a"], "zero reward variance in 100% of the groups"),
    ({"frac_reward_zero_std": 0.8}, 20, True, [], "zero reward variance in 80% of the groups"),
    ({}, 20, True, ["a step moves 2% of the weights"], "a step moves 2% of the weights"),
    ({"rewards/a/flat_groups": 1, "kl": 0.002}, 200, True, [], "zero variance of a in 100% of the groups"),
    ({"rewards/canary/flat_groups": 1.0}, 20, True, [], "only 20 steps"),
    ({"kl": 0.002}, 200, True, [], "the policy has hardly moved (KL 0.002 per token): learning_rate is low"),
    ({"kl": 0.002}, 20, True, [], "only 20 steps"),
    ({"kl": 0.0002}, 20, True, [], "the policy has hardly moved (KL 0.0002 per token): learning_rate is low"),
    ({"kl": 0.0}, 200, True, [], ""),  # with beta 0 there is no KL
    ({}, 200, True, [], ""),
]


def test_the_likeliest_reason_why_nothing_was_learned():
    found = [likely_reason([LOG | log, {"train_loss": 0.0}], *known, ["a"]) for log, *known, _ in REASONS]
    assert found == [words for *_, words in REASONS]


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
    assert last.startswith("learned in this run: emoji +"), last
    card = (tmp_path / "run/README.md").read_text()
    assert f"**{last}** (64 held-out" in card and f"- *learned*: {WORDS['learned']}" in card and "\nNone.\n" in card
    found = json.loads((tmp_path / "run/status.json").read_text())["verdict"]
    assert (found["word"], found["line"]) == ("learned", last)
    emoji = found["changes"][0]
    assert emoji["word"] == "learned" and emoji["after"] > emoji["before"]


# With 2e-3 in the place of 6e-4 it takes a third of the steps.
HACKED = ["--rewards.answer_reward.weight", "0", "--training.learning_rate", "2e-3"]


def test_the_hacked_demo_is_called_hacked_and_its_warnings_come_again(demo, tmp_path, capsys):
    short = ["--training.max_steps", "14", "--training.logging_steps", "1"]
    train_grpo.main([*demo, *HACKED, *short, "--training.output_dir", str(tmp_path / "run")])
    *_, warning, last = capsys.readouterr().out.splitlines()
    assert last.startswith("hacked in this run: emoji +") and "while answer -" in last, last
    assert warning.startswith("warning: step ") and "answer_reward, of weight 0" in warning
    assert f"\n- {warning.removeprefix('warning: ')}\n" in (tmp_path / "run/README.md").read_text()


def test_best_keeps_an_early_checkpoint_of_the_hacked_demo(demo, tmp_path, capsys):
    best = ["--config", str(ROOT / "recipes/best.yaml"), "--training.output_dir", str(tmp_path / "run")]
    short = {"max_steps": 12, "eval_steps": 3, "save_steps": 3, "num_generations_eval": 2}
    train_grpo.main([*demo, *best, *HACKED, *(f"--training.{key}={value}" for key, value in short.items())])
    state = json.loads((tmp_path / "run/trainer_state.json").read_text())
    evaluations = {log["step"]: log for log in state["log_history"] if "eval_reward" in log}
    kept, last = evaluations[state["best_global_step"]], evaluations[12]
    assert state["best_global_step"] <= 6 and kept["eval_reward"] < last["eval_reward"]  # which alone names a later one
    assert kept["eval_rewards/answer_reward/mean"] > last["eval_rewards/answer_reward/mean"]
    card = (tmp_path / "run/README.md").read_text()
    words = f"as it was at step {state['best_global_step']} (the "
    assert words in capsys.readouterr().out and words in card and "| evaluation | step 12: total reward" in card


def test_a_run_at_learning_rate_0_has_changed_nothing_and_is_not_done(tiny, tmp_path, capsys):
    with pytest.raises(RunError, match="the weights have not changed"):
        train_grpo.main([*tiny, "--training.learning_rate", "0"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("unchanged in this run: all 64 answers are as before; likely reason: in float32 ")
    assert "**Failed: the weights have not changed" in (tmp_path / "run/README.md").read_text()
