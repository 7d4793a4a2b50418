"""A reward that breaks its contract stops the run before the optimizer step, and is named with row and value."""

import asyncio
import functools

import numpy as np
import pytest
import torch

import rewards
import train_grpo
from harness.checkpoints import newest_complete
from harness.exits import RunError, UserError
from harness.rewarding import RewardError, checked, columns, flat_groups, reward_functions

CALL = {"prompts": ["p0", "p1"], "completions": ["c0", "c1"], "log_metric": lambda *_: None}


def returning(value):
    def my_reward(completions, **kwargs):
        return value

    return my_reward


@pytest.mark.parametrize(
    "value", [[1, 2.5], (1, 2), np.array([1, 2]), torch.tensor([1.0, 2.0]), [None, 1], [None, None], [True, 0]]
)
def test_numbers_pass(value):
    result = checked("my_reward", returning(value))(**CALL)
    assert result == [None if v is None else float(v) for v in value]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1.0], ["returned 1 values", "2 numbers"]),
        ([0.0, float("nan")], ["returned nan", "row 1", "'p1'", "'c1'"]),
        ([float("inf"), 0.0], ["returned inf", "row 0", "'c0'"]),
        ([0.0, -1e30], ["returned -1e+30", "row 1"]),
        ([0.0, "good"], ["returned 'good'", "row 1"]),
        ([0.0, [1]], ["returned [1]", "row 1"]),
        ({"a": 1, "b": 2}, ["returned the dict"]),
        ("ab", ["returned the str"]),
        (3.0, ["returned the float"]),
        (None, ["returned the NoneType"]),
    ],
)
def test_everything_else_is_named(value, words):
    with pytest.raises(RewardError) as error:
        checked("my_reward", returning(value))(**CALL)
    message = str(error.value)
    assert message.startswith("rewards.my_reward: ") and all(word in message for word in words), message


def picky_reward(completions, answer, **kwargs):
    return [1 / len(a) for a in answer]


def test_a_raise_is_traced_to_its_row():
    with pytest.raises(RewardError, match=r"picky_reward: raised ZeroDivisionError.*row 1 .*'c1'"):
        checked("picky_reward", picky_reward)(**CALL, answer=["x", ""])


def test_name_arguments_and_async_survive():
    async def slow_reward(completions, scale=1, **kwargs):
        return [scale, float("nan")]

    reward = checked("slow_reward", functools.partial(slow_reward, scale=2))
    assert reward.__name__ == "slow_reward"
    with pytest.raises(RewardError, match="slow_reward: returned nan"):
        asyncio.run(reward(**CALL))


def test_a_reward_may_name_whatever_trl_passes():
    def curriculum(completions, completion_ids, trainer_state, log_metric, answer, *args, bonus=1, **kwargs): ...

    assert columns(curriculum) == ["answer"]


def test_preflight_refuses_a_broken_reward(tiny, monkeypatch):
    monkeypatch.setattr(rewards, "emoji_reward", named("emoji_reward", lambda completions: {"a": 1}))
    with pytest.raises(UserError, match="rewards.emoji_reward: returned the dict"):
        train_grpo.main([*tiny, "--check"])


def raises(values):
    raise ValueError("no such word")


POISON = {  # what becomes of 16 good values, and what is said of it
    "nan": (lambda v: [*v[:5], float("nan"), *v[6:]], "returned nan for row 5 .*completion"),
    "inf": (lambda v: [*v[:5], float("inf"), *v[6:]], "returned inf for row 5 .*completion"),
    "huge": (lambda v: [*v[:5], 1e30, *v[6:]], "returned 1e.30 for row 5 .*completion"),
    "strings": (lambda v: [str(x) for x in v], "returned '0.0' for row 0 .*completion"),
    "a dict": (lambda v: dict(enumerate(v)), "returned the dict"),
    "a scalar": (sum, "returned the float"),
    "one too few": (lambda v: v[1:], "returned 15 values"),
    "raises": (raises, "raised ValueError: no such word"),
}


@pytest.mark.parametrize(("poison", "words"), POISON.values(), ids=POISON)
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
    assert newest_complete(str(tmp_path / "run")).name == "checkpoint-2"
    assert not (tmp_path / "run/model.safetensors").exists()


def named(name, function):
    def reward(completions, max_emoji: int = 4, **kwargs):
        return function(completions)

    reward.__name__ = name
    return reward


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([0, 1, 0, 1], 0),  # two groups of two, each with a difference
        ([1, 1, 0, 1], 0.5),
        ([1, 1, 0.5, 0.5], 1),  # flat within each group, whatever the groups are
        ([0.1, 0.1 + 1e-6, 0, 1], 0.5),  # noise is no difference
        ([None, 1, None, None], 1),  # nothing to compare
    ],
)
def test_flat_groups(values, share):
    assert flat_groups(values, ["a", "a", "b", "b"]) == share


def test_a_flat_reward_is_warned_about(tiny, tmp_path, capsys):
    zeros = ["--rewards.length_reward.weight", "0", "--rewards.answer_reward.weight", "0"]
    decay = ["--training.weight_decay", "0.1"]  # so that the weights move, or the run would fail
    train_grpo.main([*tiny, "--rewards.emoji_reward.max_emoji", "0", *zeros, *decay])
    words = "warning: step 1: most groups carry no signal, as all completions score alike: emoji_reward in 100% of them"
    assert words in capsys.readouterr().out


def test_rewards_py_holds_rewards_only():
    assert set(reward_functions()) == {"emoji_reward", "length_reward", "answer_reward"}
    assert columns(rewards.answer_reward) == ["answer"] and columns(rewards.length_reward) == []
    public = {name for name, value in vars(rewards).items() if callable(value) and not name.startswith("_")}
    assert public == set(reward_functions())


def test_a_reward_may_apply_to_few_rows(tiny, tmp_path, monkeypatch):
    def digits(completions, answer, **kwargs):
        return [float(a in str(c)) if a.isdigit() else None for c, a in zip(completions, answer, strict=True)]

    digits.__module__ = "rewards"
    monkeypatch.setattr(rewards, "digits", digits, raising=False)
    train_grpo.main([*tiny, "--rewards.digits.weight", "1"])
    assert (tmp_path / "run/model.safetensors").exists()


def test_rewards_that_never_apply_end_the_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(rewards, "emoji_reward", named("emoji_reward", lambda completions: [None] * len(completions)))
    train_grpo.main([*tiny, "--training.max_steps", "8", "--training.save_strategy", "no"])  # the others still teach
    alone = ["--rewards.length_reward.weight", "0", "--rewards.answer_reward.weight", "0"]
    with pytest.raises(RunError, match="emoji_reward: None for every completion, three logs in a row"):
        train_grpo.main([*tiny, *alone, "--training.max_steps", "8", "--training.output_dir", str(tmp_path / "alone")])
