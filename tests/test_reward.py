"""A reward that breaks its contract stops the run before the optimizer step, and is named with row and value."""

import asyncio
import sys

import numpy as np
import pytest
import torch
import yaml

import rewards
import train_grpo
from harness.errors import RewardError, RunError, UserError
from harness.keys import typed_rewards
from harness.reward import Reward, load_rewards
from harness.rewards_file import reward_functions, use
from harness.run_folder import RunFolder

CALL = {"prompts": ["p0", "p1"], "completions": ["c0", "c1"], "log_metric": lambda *_: None}


def for_trl(function, **settings):
    return Reward(function.__name__, 1, settings, function).for_trl()


def outcome(value):
    """What a reward that returns `value` comes to, or the message of its error."""
    try:
        return Reward("my_reward", 1, {}, lambda completions: value).for_trl()(**CALL)
    except RewardError as error:
        return str(error)


def test_one_finite_number_or_none_for_each_completion_passes_and_everything_else_is_named():
    right = [[1, 2.5], (1, 2), np.array([1, 2]), torch.tensor([1.0, 2.0]), [None, 1], [None, None], [True, 0]]
    right += [[torch.tensor(1.0), np.float32(2)]]
    assert [outcome(v) for v in right] == [[None if n is None else float(n) for n in value] for value in right]
    rows = [
        ([1.0], ["[1.0]", "2 numbers"]),
        ([0.0, float("nan")], ["nan", "row 1", "'p1'", "'c1'"]),
        ([float("inf"), 0.0], ["inf", "row 0", "'c0'"]),
        ([0.0, -1e30], ["-1e+30", "row 1"]),
        ([0.0, "good"], ["'good'", "row 1"]),
        ([0.0, [1]], ["[1]", "row 1"]),
        ({0: 1.0, 1: 2.0}, ["{0: 1.0, 1: 2.0}", "2 numbers"]),
    ]
    said = [(str(outcome(value)), ["rewards.my_reward: returned ", *words]) for value, words in rows]
    assert [row for row in said if any(word not in row[0] for word in row[1])] == []


def test_a_raise_is_traced_to_its_row():
    def picky(completions, answer):
        return [1 / len(a) if a != "exit" else sys.exit() for a in answer]

    for bad, words in (("", "ZeroDivisionError"), ("exit", "SystemExit")):
        with pytest.raises(RewardError, match=f"picky: .*{words}.*row 1 .*'c1'"):
            for_trl(picky)(**CALL, answer=["x", bad])


def test_every_call_of_an_async_reward_is_on_one_event_loop_and_two_do_not_wait_for_each_other():
    first, second, loops = asyncio.Event(), asyncio.Event(), set()

    async def one(completions, scale=1):
        loops.add(asyncio.get_running_loop())
        first.set()
        await asyncio.wait_for(second.wait(), 10)
        return [scale, 2]

    async def other(completions):
        loops.add(asyncio.get_running_loop())
        second.set()
        await asyncio.wait_for(first.wait(), 10)
        return [3, float("nan")]

    async def gathered():  # as TRL does
        return await asyncio.gather(for_trl(one, scale=5)(**CALL), for_trl(other)(**CALL), return_exceptions=True)

    scores, error = asyncio.run(gathered())
    assert scores == [5, 2] and "other: returned nan" in str(error)
    assert Reward("one", 1, {}, one).score(["p"] * 2, ["c"] * 2, {}) == [1, 2]
    assert len(loops) == 1 and for_trl(one).__name__ == "one"


def test_an_async_reward_that_exits_is_named_and_the_next_is_answered():
    async def leaves(completions, bad):
        return await asyncio.gather(asyncio.to_thread(sys.exit, "no key") if bad[0] else asyncio.sleep(0, 1))

    reward = Reward("leaves", 1, {}, leaves)
    for _ in range(2):
        with pytest.raises(RewardError, match="leaves: .*SystemExit: no key"):
            reward.score(["p"], ["c"], {"bad": [True]})
    assert reward.score(["p"], ["c"], {"bad": [False]}) == [1]


def test_what_is_logged_of_two_groups_of_two():
    rows = [  # scores; flat groups, to which share it applies, the lowest and the highest
        ([1, 1, 0, 1], 0.5, None, 0, 1),
        ([1, 1, 0.5, 0.5], 1, None, 0.5, 1),  # flat within each group, whatever the groups are
        ([0.1, 0.1 + 1e-6, 0, 1], 0.5, None, 0, 1),  # noise is no difference
        ([None, 1, None, None], 1, 0.25, 1, 1),  # nothing to compare in the first; the second is left out
        ([None, None, None, None], None, 0, None, None),
    ]
    wrong = []
    for row in rows:
        logged = {}
        call = Reward("mine", 1, {}, lambda completions, row=row: row[0]).for_trl()
        call(prompts=["a", "a", "b", "b"], completions=["b"] * 4, log_metric=logged.__setitem__)
        found = [logged.get(f"rewards/mine/{key}") for key in ("flat_groups", "applies", "min", "max")]
        if found != list(row[1:]) or logged["completions/mean_characters"] != 1:
            wrong.append((row, logged))
    assert wrong == []


# What a user's rewards.py may hold; then a name in it, its settings, and what it gives "あ" of the tokens [1, 2, 3] (of
# an answer that a data set's column has), or words of what is said
CALLABLES = """
from __future__ import annotations
import dataclasses, enum, functools, torch
from beside_it import reduce
from typing import TYPE_CHECKING, Optional
from trl.rewards import get_soft_overlong_punishment, think_format_reward
if TYPE_CHECKING:
    from nowhere import Texts

class Mode(enum.Enum):
    LOW, HIGH = "low", "high"

@dataclasses.dataclass
class Limits:
    most: int = 5

def typed(completions: Texts, scale: int = 1, mode: Mode = Mode.LOW, limits: Optional[Limits] = None, **kwargs):
    extra = {Mode.LOW: 0, Mode.HIGH: 10}[mode] + (limits.most if limits else 0)
    return [scale + extra for _ in completions]

class Bonus:
    \"\"\"A bonus.\"\"\"
    def __init__(self, bonus): self.bonus = bonus
    def __call__(self, completions, more: int = 0): return [self.bonus + more for _ in completions]
class Slow(Bonus):
    async def __call__(self, completions): return [self.bonus for _ in completions]
def telling(function):
    @functools.wraps(function)
    def inner(*args, **kwargs): return function(*args, **kwargs)
    return inner
def silent(function):
    def inner(*args, **kwargs): return function(*args, **kwargs)
    return inner
@telling
async def told_slowly(completions): return [7 for _ in completions]
@functools.lru_cache
def cached(completions): return [1]
def tokens(completion_ids): return [len(ids) for ids in completion_ids]
def target(completions, target_length): return [target_length for _ in completions]
def first_only(completions, /): return [1 for _ in completions]
def helper(text): return text
def changes(completions): return [len(turns.pop()["content"]) for turns in completions]

tripled = functools.partial(typed, scale=3)
instance = Bonus(2)
slow_partial = functools.partial(Slow(4))
soft = get_soft_overlong_punishment(4, 2)
told = torch.no_grad()(typed)  # wrapped in another module
hidden = silent(lambda completions, **kwargs: [6 for _ in completions])
also = think_format_reward
number = 3
"""
GIVES = {"tripled": 3, "slow_partial": 4, "soft": -0.5, "told_slowly": 7, "tokens": 3}
NAMED = [
    *((name, {}, score) for name, score in GIVES.items()),
    ("changes", {}, 1),
    ("changes", {}, 1),  # the same text again
    ("hidden", {}, 6),
    ("think_format_reward", {}, 0),  # imported, and named
    ("told", {"mode": "high"}, 11),
    ("typed", {"mode": "high", "limits": {"most": 3}}, 14),
    ("instance", {"more": 1}, 3),
    ("target", {"target_length": 30}, 30),
    ("instance", {"most": 1}, "rewards.instance.most: unknown"),
    ("think_format_rewrd", {}, "rewards.think_format_rewrd: think_format_reward?"),
    ("target", {}, "rewards.target: target_length query prompts.rename"),
    ("first_only", {}, "rewards.first_only: positional-only"),
    ("cached", {}, "rewards.cached: unhashable"),
    ("helper", {}, "rewards.helper: `completions`"),
    ("reduce", {}, "rewards.reduce: `completions`"),  # written in C
    ("Bonus", {}, "rewards.Bonus: class"),
    ("number", {}, "rewards.number: 3"),
]


def test_any_callable_is_a_reward_or_one_line_says_what_it_lacks(tmp_path):
    (tmp_path / "rewards.py").write_text(CALLABLES)
    (tmp_path / "beside_it.py").write_text("from functools import reduce")
    use(tmp_path / "rewards.py")
    answer = [[{"role": "assistant", "content": "あ"}]]
    wrong = []

    def error_of(key, problem):
        return UserError(f"{key}: {problem}")

    for name, settings, expected in NAMED:
        try:
            entries = typed_rewards({name: {"weight": 1, **settings}}, error_of, {})
            yaml.safe_dump(entries)  # as a run records it
            (reward,) = load_rewards(entries, ["query"], error_of)
            (got,) = reward.score(["?"], answer, {"completion_ids": [[1, 2, 3]]})
            right = got == expected and reward.for_trl().__name__ == name
        except (UserError, RewardError) as error:
            got = str(error)
            right = isinstance(expected, str) and all(word in got for word in expected.split())
        wrong += [] if right else [(name, settings, got)]
    assert wrong == []
    found = reward_functions()  # not those that are imported, and not `hidden`, which may be any
    assert set(found) == {*GIVES, "also", "told", "typed", "instance", "target", "first_only", "cached", "changes"}
    titles = {name: Reward(name, 1, {}, function).title for name, function in found.items()}
    assert titles["instance"] == "A bonus." and titles["tripled"] == titles["soft"] == ""
    with pytest.raises(RewardError, match="typed: .*least"):  # which pydantic would drop by itself
        Reward("typed", 1, {"limits": {"least": 1}}, found["typed"]).score(["?"], answer, {})


@pytest.mark.miniature
def test_a_reward_reads_the_run_in_trainer_state_wherever_it_is_called(tiny, tmp_path, monkeypatch):
    seen = []

    def late(completions, trainer_state):
        state = trainer_state
        if state.log_history:
            assert state.log_history[-1]["reward"] > -1
        seen.append((state.max_steps, state.num_train_epochs, state.logging_steps))
        return [state.global_step / state.max_steps for _ in completions]

    monkeypatch.setattr(rewards, "late", late, raising=False)
    often = ["--training.max_steps", "12", "--training.logging_steps", "0.5", "--training.steps_per_generation", "1"]
    rows = ["--prompts.limit", "14", "--samples.held_out", "3", "--training.eval_strategy", "steps"]  # an epoch of 5
    run = [*tiny, *often, *rows, "--training.eval_steps", "12", "--rewards.late.weight", "0"]
    for mode, expected in (("--check", (12, 3, 6)), ("--rehearse", (12,)), ("--training.seed=1", (12, 3, 6))):
        seen.clear()
        train_grpo.main([*run, mode])
        assert {state[: len(expected)] for state in seen} == {expected}
    assert {sample["after"]["rewards"]["late"] for sample in RunFolder(tmp_path / "run").samples()} == {1.0}


ALONE = ["--rewards.length_reward.weight", "0", "--rewards.answer_reward.weight", "0"]
OFTEN = ["--training.steps_per_generation", "1", "--samples.held_out", "0"]  # samples, and so logs, at every step


def test_rewards_of_few_rows_or_none_end_a_run_only_where_no_other_teaches(tiny, tmp_path, monkeypatch, capfd, caplog):
    """And one of tokens is given those of the samples; what no reward applies to is in no total."""

    def digits(completions, answer, **kwargs):
        return [float(a in str(c)) if a.isdigit() else None for c, a in zip(completions, answer, strict=True)]

    monkeypatch.setattr(rewards, "digits", digits, raising=False)
    monkeypatch.setattr(rewards, "tokens", lambda completion_ids: [len(ids) for ids in completion_ids], raising=False)
    monkeypatch.setattr(rewards, "emoji_reward", lambda completions, max_emoji: [None] * len(completions))
    train_grpo.main([*tiny, *OFTEN, "--rewards.digits.weight", "1", "--rewards.tokens.weight", "0"])  # four logs
    assert (tmp_path / "run/model.safetensors").exists()
    sides = [sample[side] for sample in RunFolder(tmp_path / "run").samples() for side in ("before", "after")]
    scores = [side["rewards"]["tokens"] for side in sides]
    assert len(set(scores)) > 1 and all(1 <= score <= 16 for score in scores)
    with pytest.raises(RunError, match="emoji_reward: None"):
        train_grpo.main([*tiny, *OFTEN, *ALONE, "--training.output_dir", str(tmp_path / "alone")])

    def seldom(completions, trainer_state, max_emoji):
        never = trainer_state.global_step == 1
        return [None if never or i % 2 else -1.0 - len(text[0]["content"]) for i, text in enumerate(completions)]

    monkeypatch.setattr(rewards, "emoji_reward", seldom)
    others = ["--rewards.length_reward", "null", "--rewards.answer_reward", "null"]
    train_grpo.main([*tiny, *OFTEN, *others, "--training.output_dir", str(tmp_path / "seldom")])
    logs = [log for log in RunFolder(tmp_path / "seldom").state()["log_history"] if "reward" in log]
    assert logs[1]["reward"] is None and all(log["reward"] <= log["reward_best_of_group"] < -1 for log in logs[2:])
    assert "reward –  emoji –" in "".join(capfd.readouterr()) and "returned None" not in caplog.text
