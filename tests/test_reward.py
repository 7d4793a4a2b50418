"""A reward that breaks its contract stops the run before the optimizer step, and is named with row and value."""

import asyncio

import numpy as np
import pytest
import torch

import rewards
import train_grpo
from harness.errors import RewardError, RunError, UserError
from harness.reward import Reward, flat_groups
from harness.rewards_file import columns, reward_functions
from harness.run_folder import RunFolder


def checked(function, **settings):
    """As TRL calls it."""
    return Reward(function.__name__, 1, settings, function).for_trl()


CALL = {"prompts": ["p0", "p1"], "completions": ["c0", "c1"], "log_metric": lambda *_: None}


def returning(value):
    def my_reward(completions, **kwargs):
        return value

    return my_reward


def outcome(value):
    """What a reward that returns `value` comes to, or what is raised."""
    try:
        return checked(returning(value))(**CALL)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_numbers_pass():
    rows = [[1, 2.5], (1, 2), np.array([1, 2]), torch.tensor([1.0, 2.0]), [None, 1], [None, None], [True, 0]]
    expected = [[None if v is None else float(v) for v in value] for value in rows]
    found = [outcome(value) for value in rows]
    assert [row for row in zip(rows, found, expected, strict=True) if row[1] != row[2]] == []


def test_everything_else_is_named():
    rows = [
        ([1.0], ["returned 1 values", "2 numbers"]),
        ([0.0, float("nan")], ["returned nan", "row 1", "'p1'", "'c1'"]),
        ([float("inf"), 0.0], ["returned inf", "row 0", "'c0'"]),
        ([0.0, -1e30], ["returned -1e+30", "row 1"]),
        ([1e30, 0.0], ["returned 1e+30", "row 0"]),
        ([0.0, "good"], ["returned 'good'", "row 1"]),
        (["0.0", "1.0"], ["returned '0.0'", "row 0"]),  # numbers, but written
        ([0.0, [1]], ["returned [1]", "row 1"]),
        ({0: 1.0, 1: 2.0}, ["returned the dict"]),
        ("ab", ["returned the str"]),
        (3.0, ["returned the float"]),
        (None, ["returned the NoneType"]),
    ]
    wrong = []
    for value, words in rows:
        said = str(outcome(value))
        if not said.startswith("RewardError: rewards.my_reward: ") or not all(word in said for word in words):
            wrong.append((value, said))
    assert wrong == []


def picky_reward(completions, answer, **kwargs):
    return [1 / len(a) for a in answer]


def test_a_raise_is_traced_to_its_row():
    with pytest.raises(RewardError, match=r"picky_reward: raised ZeroDivisionError.*row 1 .*'c1'"):
        checked(picky_reward)(**CALL, answer=["x", ""])


def test_name_arguments_and_async_survive():
    async def slow_reward(completions, scale=1, **kwargs):
        return [scale, float("nan")]

    reward = checked(slow_reward, scale=2)
    assert reward.__name__ == "slow_reward"
    with pytest.raises(RewardError, match="slow_reward: returned nan"):
        asyncio.run(reward(**CALL))


def test_a_reward_gets_only_what_it_names():
    def strict(completions, answer, scale=1):
        return [scale * len(a) for a in answer]

    def only_ids(completions, *, completion_ids, trainer_state=None):
        return [len(ids) for ids in completion_ids]

    passed = CALL | {"answer": ["x", "yy"], "title": ["t", "t"], "completion_ids": [[1], [1, 2]], "trainer_state": 1}
    assert checked(strict, scale=3)(**passed) == [3, 6] and checked(only_ids)(**passed) == [1, 2]


def test_a_reward_may_name_whatever_trl_passes():
    def curriculum(completions, completion_ids, trainer_state, log_metric, answer, *args, bonus=1, **kwargs): ...

    assert columns(curriculum) == ["answer"]


def test_preflight_refuses_a_broken_reward(tiny, monkeypatch):
    monkeypatch.setattr(rewards, "emoji_reward", named("emoji_reward", lambda completions: {"a": 1}))
    with pytest.raises(UserError, match="rewards.emoji_reward: returned the dict"):
        train_grpo.main([*tiny, "--check"])


def raises(values):
    raise ValueError("no such word")


@pytest.mark.parametrize(
    ("poison", "words"),
    [
        (lambda values: [*values[:5], float("nan"), *values[6:]], "returned nan for row 5 .*completion"),
        (raises, "raised ValueError: no such word"),
    ],
    ids=["a value", "a raise"],
)
def test_poison_in_mid_run_stops_it_before_the_step(tiny, tmp_path, monkeypatch, poison, words):
    calls = []

    def turns_bad(completions):
        calls.append(len(completions))
        values = [1.0 * i for i in range(len(completions))]
        return poison(values) if calls.count(16) == 2 else values  # 16 are a generation batch: the one of steps 3, 4

    monkeypatch.setattr(rewards, "emoji_reward", named("emoji_reward", turns_bad))
    with pytest.raises(RunError, match=f"rewards.emoji_reward: {words}"):
        train_grpo.main([*tiny, "--training.save_steps", "1"])
    assert "RewardError" in (tmp_path / "run/error.log").read_text()
    assert RunFolder(tmp_path / "run").newest_complete().name == "checkpoint-2"
    assert not (tmp_path / "run/model.safetensors").exists()


def named(name, function):
    def reward(completions, max_emoji: int = 4, **kwargs):
        return function(completions)

    reward.__name__ = name
    return reward


def test_flat_groups():
    rows = [
        ([0, 1, 0, 1], 0),  # two groups of two, each with a difference
        ([1, 1, 0, 1], 0.5),
        ([1, 1, 0.5, 0.5], 1),  # flat within each group, whatever the groups are
        ([0.1, 0.1 + 1e-6, 0, 1], 0.5),  # noise is no difference
        ([None, 1, None, None], 1),  # nothing to compare
    ]
    found = [flat_groups(values, ["a", "a", "b", "b"]) for values, _ in rows]
    assert [(*row, share) for row, share in zip(rows, found, strict=True) if share != row[1]] == []


def test_rewards_py_holds_rewards_only():
    assert set(reward_functions()) == {"emoji_reward", "length_reward", "answer_reward"}
    assert columns(rewards.answer_reward) == ["answer"] and columns(rewards.length_reward) == []
    public = {name for name, value in vars(rewards).items() if callable(value) and not name.startswith("_")}
    assert public == set(reward_functions())


ALONE = ["--rewards.length_reward.weight", "0", "--rewards.answer_reward.weight", "0"]
OFTEN = ["--training.steps_per_generation", "1", "--samples.held_out", "0"]  # samples, and so logs, at every step
FLAT = "warning: step 1: most groups carry no signal, as all completions score alike: emoji_reward in 100% of them"


def test_a_flat_reward_is_warned_about(tiny, capsys):
    decay = [
        "--training.weight_decay",
        "0.1",
        "--training.max_steps",
        "2",
    ]  # or the weights would not move
    train_grpo.main([*tiny, *OFTEN, "--rewards.emoji_reward.max_emoji", "0", *ALONE, *decay])
    assert FLAT in capsys.readouterr().out


def test_rewards_that_apply_to_few_rows_or_none_end_the_run_only_where_no_other_teaches(tiny, tmp_path, monkeypatch):
    def digits(completions, answer, **kwargs):
        return [float(a in str(c)) if a.isdigit() else None for c, a in zip(completions, answer, strict=True)]

    digits.__module__ = "rewards"
    monkeypatch.setattr(rewards, "digits", digits, raising=False)
    monkeypatch.setattr(rewards, "emoji_reward", named("emoji_reward", lambda completions: [None] * len(completions)))
    train_grpo.main([*tiny, *OFTEN, "--rewards.digits.weight", "1"])  # four logs
    assert (tmp_path / "run/model.safetensors").exists()
    with pytest.raises(RunError, match="emoji_reward: None for every completion, three logs in a row"):
        train_grpo.main([*tiny, *OFTEN, *ALONE, "--training.output_dir", str(tmp_path / "alone")])
