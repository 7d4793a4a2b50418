"""A reward that breaks its contract stops the run before the optimizer step, and is named with row and value."""

import asyncio
import json
import sys

import numpy as np
import pytest
import torch
import yaml

import rewards
import train_grpo
from harness.errors import RewardError, RunError, UserError
from harness.keys import typed_rewards
from harness.reward import Reward, flat_groups, load_rewards
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
        (lambda values: sys.exit(), "raised SystemExit"),
    ],
    ids=["a value", "a raise", "an exit"],
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
        ([None, 1, None, None], 1),  # nothing to compare in the first; the second is left out
        ([0, 1, None, None], 0),
        ([None, None, None, None], None),
    ]
    found = [flat_groups(values, ["a", "a", "b", "b"]) for values, _ in rows]
    assert [(*row, share) for row, share in zip(rows, found, strict=True) if share != row[1]] == []


def test_the_share_to_which_a_reward_applies_and_the_ends_of_its_scores_are_logged():
    for values, *logs in (([1, None, None, 2], 0.5, 1, 2), ([None] * 4, 0, None, None), ([3, 2, 4, 1], None, 1, 4)):
        logged = {}
        call = Reward("mine", 1, {}, lambda completions, values=values: values).for_trl()
        call(prompts=["a"] * 4, completions=["b"] * 4, log_metric=logged.__setitem__)
        assert [logged.get(f"rewards/mine/{key}") for key in ("applies", "min", "max")] == logs


def test_rewards_py_holds_rewards_only():
    assert set(reward_functions()) == {"emoji_reward", "length_reward", "answer_reward"}
    assert columns(rewards.answer_reward) == ["answer"] and columns(rewards.length_reward) == []
    public = {name for name, value in vars(rewards).items() if callable(value) and not name.startswith("_")}
    assert public == set(reward_functions())


# What a user's rewards.py may hold, and under which name it is used; its settings; what it gives "あ" of the tokens
# [1, 2, 3] (of an answer that a data set's column has), or what is said of it
CALLABLES = """
from __future__ import annotations
import dataclasses, enum, functools
from typing import TYPE_CHECKING, Literal, Optional
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward
if TYPE_CHECKING:
    from nowhere import Texts

class Mode(enum.Enum):
    LOW, HIGH = "low", "high"

class Level(enum.IntEnum):
    ONE, TWO = 1, 2

@dataclasses.dataclass
class Limits:
    most: int = 5

def typed(completions: Texts, scale: int = 1, mode: Mode = Mode.LOW, level: Level = Level.ONE,
          limits: Optional[Limits] = None, kind: Literal["a", "b"] = "a", **kwargs):
    extra = {Mode.LOW: 0, Mode.HIGH: 10}[mode] + (100 if level is Level.TWO else 0) + (limits.most if limits else 0)
    return [scale + extra for _ in completions]

class Bonus:
    \"\"\"A bonus.\"\"\"
    def __init__(self, bonus): self.bonus = bonus
    def __call__(self, completions, more: int = 0): return [self.bonus + more for _ in completions]
    def double(self, completions): return [2 * self.bonus for _ in completions]

class Slow(Bonus):
    async def __call__(self, completions): return [self.bonus for _ in completions]

def telling(function):
    @functools.wraps(function)
    def inner(*args, **kwargs): return function(*args, **kwargs)
    return inner

def silent(function):
    def inner(*args, **kwargs): return function(*args, **kwargs)
    return inner

tripled = functools.partial(typed, scale=3)
instance = Bonus(2)
method = instance.double
slow_instance = Slow(4)
slow_partial = functools.partial(slow_instance)
short = lambda completions: [float(len(c[-1]["content"])) for c in completions]
soft = get_soft_overlong_punishment(4, 2)
repeats = get_repetition_penalty_reward(2)
told = telling(typed)
hidden = silent(lambda completions, **kwargs: [6 for _ in completions])
also = think_format_reward

@telling
async def told_slowly(completions): return [7 for _ in completions]

def tokens(completion_ids): return [len(ids) for ids in completion_ids]
def target(completions, target_length): return [target_length for _ in completions]
def first_only(completions, /): return [1 for _ in completions]
def helper(text): return text

@functools.lru_cache
def cached(completions): return [1]

number = 3
"""
NAMED = [
    ("tripled", {}, 3),
    ("tripled", {"scale": 5}, 5),
    ("tripled", {"scale": "x"}, "rewards.tripled.scale: should be a valid integer, got x"),
    ("instance", {"more": 1}, 3),
    ("instance", {"more": "x"}, "rewards.instance.more: should be a valid integer"),
    ("instance", {"most": 1}, "rewards.instance.most: unknown"),
    ("method", {}, 4),
    ("slow_instance", {}, 4),
    ("slow_partial", {}, 4),
    ("short", {}, 1),
    ("soft", {}, -0.5),
    ("repeats", {}, 0),
    ("told", {"mode": "high"}, 11),
    ("told_slowly", {}, 7),
    ("hidden", {}, 6),
    ("also", {}, 0),
    ("think_format_reward", {}, 0),  # imported, and named
    ("think_format_rewrd", {}, "no such function in rewards.py, did you mean think_format_reward?"),
    ("tokens", {}, 3),
    ("typed", {"mode": "high", "level": 2, "limits": {"most": 3}, "kind": "b"}, 114),
    ("typed", {"limits": None}, 1),
    ("typed", {"mode": "mid"}, "rewards.typed.mode: should be one of low, high, got mid"),
    ("typed", {"level": "TWO"}, "rewards.typed.level: should be one of 1, 2, got TWO"),
    ("typed", {"kind": "c"}, "rewards.typed.kind: should be one of a, b, got c"),
    ("typed", {"limits": {"most": "x"}}, "rewards.typed.limits.most: should be a valid integer, got x"),
    ("typed", {"limits": {"least": 1}}, "rewards.typed.limits.least: unknown; it has most"),
    ("typed", {"scale": "x"}, "rewards.typed.scale: should be a valid integer, got x"),
    ("target", {"target_length": 30}, 30),
    ("target", {}, "rewards.target: needs the column target_length, but the data have query; rename one"),
    ("target", {}, "give a value for all rows (rewards.target.target_length)"),
    ("first_only", {}, "rewards.first_only: takes completions by its place only"),
    ("helper", {}, "rewards.helper: has no parameter `completions` (or `completion_ids`)"),
    ("get_soft_overlong_punishment", {}, "call it there: NAME = get_soft_overlong_punishment(...)"),
    ("cached", {}, "rewards.cached: is cached (functools)"),
    ("Bonus", {}, "rewards.Bonus: is a class; make one of it in rewards.py (NAME = Bonus(...))"),
    ("number", {}, "rewards.number: is no function but of type int"),
    ("functools", {}, "rewards.functools: is no function but of type module"),
]


def error_of(key: str, problem: str) -> UserError:
    return UserError(f"{key}: {problem}")


def test_any_callable_is_a_reward_or_one_line_says_what_it_lacks(monkeypatch, tmp_path):
    (tmp_path / "rewards.py").write_text(CALLABLES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rewards")
    answer, wrong = [[{"role": "assistant", "content": "あ"}]], []
    for name, settings, expected in NAMED:
        try:
            entries = typed_rewards({name: {"weight": 1, **settings}}, error_of, {})
            yaml.safe_dump(entries)  # as a run records it
            (reward,) = load_rewards(entries, ["query"], error_of)
            (got,) = reward.score(["?"], answer, {"completion_ids": [[1, 2, 3]]})
            right = got == expected and reward.for_trl().__name__ == name
        except (UserError, RewardError) as error:
            got = str(error)
            right = isinstance(expected, str) and expected in got
        wrong += [] if right else [(name, settings, got)]
    assert wrong == []
    own = {name for name, _, expected in NAMED if not isinstance(expected, str)} | {"target"}
    assert set(reward_functions()) == own - {"think_format_reward", "hidden"}  # one imported, and one that may be any
    titles = {name: Reward(name, 1, {}, function).title for name, function in reward_functions().items()}
    assert titles["instance"] == "A bonus." and titles["tripled"] == "tripled" and titles["soft"] == "soft"


def test_a_reward_of_tokens_is_given_those_of_the_answers_that_are_shown(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(rewards, "tokens", lambda completion_ids: [len(ids) for ids in completion_ids], raising=False)
    train_grpo.main([*tiny, "--rewards.tokens.weight", "1", "--training.max_steps", "1", "--samples.held_out", "8"])
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").open(encoding="utf-8")]
    scores = [sample[side]["rewards"]["tokens"] for sample in samples for side in ("before", "after")]
    assert len(set(scores)) > 1 and all(1 <= score <= 16 for score in scores)


ALONE = ["--rewards.length_reward.weight", "0", "--rewards.answer_reward.weight", "0"]
OFTEN = ["--training.steps_per_generation", "1", "--samples.held_out", "0"]  # samples, and so logs, at every step
FLAT = "warning: step 2: most groups carry no signal, as all completions score alike: emoji_reward in 100% of them"


def test_a_flat_reward_is_warned_about(tiny, capsys):
    decay = ["--training.weight_decay", "0.1", "--training.max_steps", "2"]  # or the weights would not move
    many = ["--training.per_device_train_batch_size", "64"]  # 16 questions a step
    train_grpo.main([*tiny, *OFTEN, "--rewards.emoji_reward.max_emoji", "0", *ALONE, *decay, *many])
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
