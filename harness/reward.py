"""Reward: one entry of the section `rewards`: a callable of rewards.py, or a reward model; its calls are checked.

TRL takes a dict's keys for rewards, and sets a whole group to zero where one value is inf. Here a reward returns one
finite number per completion, or None where it does not apply; otherwise the run ends and names the row.
This module imports no torch, so that `python rewards.py` is quick.
"""

import asyncio
import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.errors import RewardError, UserError, in_short
from harness.rewards_file import columns, parameters, reward_named, title, underlying

HUGE = 1e9  # above it TRL's float32 standard deviation overflows, and a group's differences are rounded away
FLAT = 1e-3  # a smaller spread in a group counts as none: TRL divides by the spread, which would amplify noise
GUARDED = "reward_while_canaries_hold"  # the metric by which recipes/best.yaml chooses


@dataclass
class Reward:
    """A reward as config.yaml names and weighs it; of weight 0 it is a canary: logged, and not trained on.

    `settings`: its own arguments. `function` is None for a reward model, of which `name` is the Hub name or folder;
    `model` and `tokenizer` are set when it is loaded. `kept`: columns that TRL is to write beside a completion.
    """

    name: str
    weight: float
    settings: dict[str, Any]
    function: Callable | None
    model: Any = None
    tokenizer: Any = None
    kept: Sequence[str] = ()

    @property
    def logged(self) -> str:
        return logged_name(self.name)

    @property
    def columns(self) -> list[str]:
        """Of the data, that it needs."""
        return [name for name in columns(self.function) if name not in self.settings] if self.function else []

    @property
    def may_cost(self) -> bool:
        """A reward model, or a function that waits for others (async) or has `judge` in its name."""
        return self.function is None or self._is_async() or "judge" in self.name.lower()

    @property
    def title(self) -> str:
        """What it measures: the first line of its docstring."""
        return title(self.function) or self.name if self.function else "a reward model's score"

    def __str__(self) -> str:
        """`length_reward (target_length 30, alpha 0.15)`"""
        words = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return self.name + (words and f" ({words})")

    def for_trl(self) -> Callable | Any:
        """The loaded model; or the function as TRL calls it, with every result checked; raises RewardError.

        Each call logs the mean length in characters, the share of groups in which all completions score alike,
        the lowest and the highest score and, where it is None for some, to which share of the completions it applies.
        """
        if self.function is None:
            return self.model

        def check(values: Any, passed: dict[str, Any]) -> list[float | None]:
            prompts, completions, log_metric = (passed[name] for name in ("prompts", "completions", "log_metric"))
            values = _one_number_each(self.name, values, prompts, completions)
            lengths = [len(c if isinstance(c, str) else c[-1]["content"] or "") for c in completions]
            log_metric("completions/mean_characters", sum(lengths) / len(lengths))  # TRL counts tokens only
            if (share := flat_groups(values, prompts)) is not None:
                log_metric(f"rewards/{self.name}/flat_groups", share)
            if scores := [value for value in values if value is not None]:
                log_metric(f"rewards/{self.name}/min", min(scores))
                log_metric(f"rewards/{self.name}/max", max(scores))
            if len(scores) < len(values):
                log_metric(f"rewards/{self.name}/applies", len(scores) / len(values))
            for column in self.kept:
                passed["log_extra"](column, [_as_text(value) for value in passed[column]])
            return values

        def call(**passed):
            with self._failure_named(passed):
                values = self._ask(passed)
                if inspect.iscoroutine(values):  # of an async function in a decorator that is not
                    values = asyncio.run(values)
            return check(values, passed)

        async def call_async(**passed):
            with self._failure_named(passed):
                values = await self._ask(passed)
            return check(values, passed)

        call = call_async if self._is_async() else call
        call.__name__ = self.name  # TRL logs a reward under its function's name
        return call

    def score(self, prompts: list, completions: list, others: dict[str, list], state: Any = None) -> list[float | None]:
        """Call the function outside training as TRL would; `others`: columns and, where there are tokens,
        `completion_ids`; `state`: a TrainerState.
        """
        passed = {"prompts": prompts, "completions": completions, **others}
        passed |= {"trainer_state": state, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
        result = self.for_trl()(**passed)
        return asyncio.run(result) if inspect.isawaitable(result) else result

    def _is_async(self) -> bool:
        return inspect.iscoroutinefunction(underlying(self.function))

    def _ask(self, passed: dict[str, Any]) -> Any:
        """Call the function with what it names of what TRL passes, and with its settings as it annotates them."""
        takes = parameters(self.function)
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
        named = {name: value for name, value in passed.items() if takes_all or name in takes}
        return self.function(**named, **self.settings)

    @contextmanager
    def _failure_named(self, passed: dict[str, Any]) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            row = self._first_row_that_raises(passed)
            where = "" if row is None else f" on {_row(row, passed['prompts'], passed['completions'])}"
            remedy = "fix it in rewards.py (a run that the network has stopped goes on with --resume)"
            raise RewardError(f"rewards.{self.name}: raised {in_short(error)}{where}; {remedy}") from error

    def _first_row_that_raises(self, passed: dict[str, Any]) -> int | None:
        for row in () if self._is_async() else range(len(passed["completions"])):
            try:
                self._ask({key: [value[row]] if isinstance(value, list) else value for key, value in passed.items()})
            except (Exception, SystemExit):
                return row
        return None


def load_rewards(
    entries: dict[str, dict[str, Any]], data_columns: list[str] | None, error: Callable[[str, str], UserError]
) -> list[Reward]:
    """The rewards that the section `rewards` names; `error` makes what is raised of (key, problem).

    One that needs a column which the data do not have is refused; of weight 0 it is left out, and said so. None for
    `data_columns` asks for all.
    """
    rewards = []
    for name, entry in entries.items():
        settings = {key: value for key, value in entry.items() if key != "weight"}
        reward = Reward(name, entry["weight"], settings, reward_named(name))
        missing = ", ".join(sorted(set(reward.columns) - set(data_columns))) if data_columns is not None else ""
        if missing and not reward.weight:
            print(f"note: {name}, of weight 0, is left out, as the data have no column {missing}")
            continue
        if missing:
            has = ", ".join(column for column in data_columns if column != "prompt")
            problem = f"needs the column {missing}, but the data have {has}; rename one (prompts.rename), give a value "
            value = f"for all rows (rewards.{name}.{missing.split(', ')[0]})"
            raise error(f"rewards.{name}", f"{problem}{value}, or set rewards.{name}: null to leave the reward out")
        rewards.append(reward)
    return rewards


def given_up(before: float, fell: float, chance: float = 0.0) -> bool:
    """Whether a canary has lost over a quarter of its score, 0.05 at least, and more than may be `chance`.

    The one rule: of the log's warnings, of the checkpoint that recipes/best.yaml keeps, and of the verdict.
    """
    return fell > max(abs(before) / 4, 0.05, chance)


def flat_groups(values: list[float | None], prompts: list) -> float | None:
    """The share of groups, the neighbours with the same prompt, in which the values differ by less than FLAT.

    A group to which the reward does not apply is left out; None where it applies to none.
    """
    groups = itertools.groupby(zip(prompts, values, strict=True), key=lambda pair: pair[0])
    scores = [[value for _, value in group if value is not None] for _, group in groups]
    flat = [max(group) - min(group) < FLAT for group in scores if group]
    return sum(flat) / len(flat) if flat else None


def logged_name(name: str) -> str:
    """Under which TRL logs a reward: of a reward model the last part of its name or folder."""
    return name.split("/")[-1]


def short(name: str) -> str:
    """`emoji_reward` as `emoji`."""
    return name.removesuffix("_reward")


def total(scores: Mapping[str, float | None], weights: Mapping[str, float]) -> float:
    """The weighted sum of scores; a reward that does not apply counts as 0, as TRL counts it."""
    return sum(weight * (scores.get(name) or 0) for name, weight in weights.items())


def reward_means(log: dict[str, float]) -> dict[str, float]:
    """The mean of each reward in one log of TRL's, by the name that it is logged under."""
    return {key.split("/")[1]: log[key] for key in log if key.startswith("rewards/") and key.endswith("/mean")}


def score_words(scores: dict[str, float | None], between: str = ", ") -> str:
    """`emoji 4.00, length 0.74, answer –`"""
    words = ["–" if score is None else f"{score:.2f}" for score in scores.values()]
    return between.join(f"{short(name)} {word}" for name, word in zip(scores, words, strict=True))


def _one_number_each(name: str, values: Any, prompts: list, completions: list) -> list[float | None]:
    expected = f"expected a list of {len(completions)} numbers, one per completion"
    if hasattr(values, "tolist"):  # numpy arrays and torch tensors
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise RewardError(f"rewards.{name}: returned the {type(values).__name__} {_short(values)}; {expected}")
    if len(values) != len(completions):
        raise RewardError(f"rewards.{name}: returned {len(values)} values; {expected}")
    for row, value in enumerate(values):
        number = isinstance(value, int | float) or hasattr(value, "item")  # numpy's and torch's numbers have item()
        if value is not None and not (number and abs(float(value)) < HUGE):  # a NaN compares false
            raise RewardError(
                f"rewards.{name}: returned {_short(value)} for {_row(row, prompts, completions)}; "
                f"expected a finite number below {HUGE:g}, or None where the reward does not apply"
            )
    return [None if value is None else float(value) for value in values]


def _as_text(value: Any) -> str | None:
    """A Parquet file refuses a column of several types."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _row(row: int, prompts: list, completions: list) -> str:
    prompt, completion = (value[row] for value in (prompts, completions))
    prompt, completion = (v if isinstance(v, str) else v[-1]["content"] for v in (prompt, completion))
    return f"row {row} of the batch (prompt {_short(prompt)}, completion {_short(completion)})"


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
