"""Reward: one entry of the section `rewards`: a callable of rewards.py, or a reward model; its calls are checked.

TRL takes a dict's keys for rewards, and sets a whole group to zero where one value is inf. Here a reward returns one
finite number per completion, or None where it does not apply; otherwise the run ends and names the row.
This module imports no torch, so that `python rewards.py` is quick.
"""

import asyncio
import copy
import functools
import inspect
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from harness.errors import RewardError, UserError, counted, in_short, one_line
from harness.rewards_file import columns, in_types, parameters, place_of, reward_named, takes_any_name, underlying

HUGE = 1e9  # above it TRL's float32 standard deviation overflows, and a group's differences are rounded away
FLAT = 1e-3  # a smaller spread in a group counts as none: TRL divides by the spread, which would amplify noise
GUARDED = "reward_while_canaries_hold"  # the metric by which recipes/best.yaml chooses
Passed = dict[str, Any]  # to a reward, by name
Scores = list[float | None]  # one per completion; None where the reward does not apply


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
        if self.function is None:
            return []
        return [name for name in columns(self.function) if name not in self.settings]

    @property
    def may_cost(self) -> bool:
        """A reward model, or a function that waits for others (async) or has `judge` in its name."""
        return self.function is None or self._is_async() or "judge" in self.name.lower()

    @property
    def title(self) -> str:
        """What it measures: the first line of its docstring; empty where it has none."""
        if self.function is None:
            return "a reward model's score"
        text = getattr(self.function, "func", self.function).__doc__ or ""  # of a functools.partial its function's
        return text.strip().partition("\n")[0]

    def __str__(self) -> str:
        """`length_reward (target_length 30, alpha 0.15)`"""
        if not self.settings:
            return self.name
        words = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return f"{self.name} ({words})"

    def for_trl(self) -> Callable | Any:
        """The loaded model; or the function as TRL calls it, with every result checked and logged; raises RewardError.

        TRL awaits all async functions at once, so that no judge waits for another; it stays so.
        """
        if self.function is None:
            return self.model

        def call(**passed):
            return self._call(passed)

        async def call_async(**passed):
            with self._failure_named(passed):
                future = asyncio.run_coroutine_threadsafe(self._ask(passed), event_loop())
                values = await asyncio.wrap_future(future)
            return self._checked(values, passed)

        function = call_async if self._is_async() else call
        function.__name__ = self.name  # TRL logs a reward under its function's name
        return function

    def score(self, prompts: list, completions: list, others: dict[str, list], state: Any = None) -> Scores:
        """Call the function outside training as TRL would; `others`: columns and, where there are tokens,
        `completion_ids`; `state`: a TrainerState.
        """
        passed = {"prompts": prompts, "completions": completions, **others, "trainer_state": state}
        passed |= {"log_extra": lambda *_: None, "log_metric": lambda *_: None}
        return self._call(passed)

    def _is_async(self) -> bool:
        return inspect.iscoroutinefunction(underlying(self.function))

    def _call(self, passed: Passed) -> Scores:
        with self._failure_named(passed):
            values = self._ask(passed)
            if inspect.iscoroutine(values):
                values = asyncio.run_coroutine_threadsafe(values, event_loop()).result()
        return self._checked(values, passed)

    def _ask(self, passed: Passed) -> Any:
        """Call the function with what it names of what TRL passes, and with its settings as it annotates them."""
        takes = parameters(self.function)
        takes_all = takes_any_name(self.function)
        named = {name: value for name, value in passed.items() if takes_all or name in takes}
        # Copies, as what one reward changes would be what the next one judges.
        named |= {name: copy.deepcopy(named[name]) for name in ("prompts", "completions") if name in named}
        return self.function(**named, **in_types(self.function, self.settings))

    def _checked(self, values: Any, passed: Passed) -> Scores:
        scores = _one_number_each(self.name, values, passed)
        self._log(scores, passed)
        return scores

    def _log(self, scores: Scores, passed: Passed) -> None:
        """The mean length in characters, the share of groups with zero reward variance, the lowest and the
        highest score and, where it is None for some, to which share of the completions the reward applies.
        """
        log_metric = passed["log_metric"]
        lengths = [len(_text(completion)) for completion in passed["completions"]]
        log_metric("completions/mean_characters", sum(lengths) / len(lengths))  # TRL counts tokens only
        flat = flat_groups(scores, passed["prompts"])
        if flat is not None:
            log_metric(f"rewards/{self.name}/flat_groups", flat)
        found = [score for score in scores if score is not None]
        if found:
            log_metric(f"rewards/{self.name}/min", min(found))
            log_metric(f"rewards/{self.name}/max", max(found))
        if len(found) < len(scores):
            log_metric(f"rewards/{self.name}/applies", len(found) / len(scores))
        for column in self.kept:
            passed["log_extra"](column, [_for_parquet(value) for value in passed[column]])

    @contextmanager
    def _failure_named(self, passed: Passed) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            problem = f"{place_of(error)}: rewards.{self.name}: raised {in_short(error)}"
            row = self._first_row_that_raises(passed)
            if row is not None:
                problem += f" on {_row(row, passed)}"
            state = passed.get("trainer_state")
            if self.may_cost and state and state.global_step:
                problem += "; a run that the network has stopped goes on with --resume"
            raise RewardError(problem) from error

    def _first_row_that_raises(self, passed: Passed) -> int | None:
        if self._is_async():
            return None
        for row in range(len(passed["completions"])):
            alone = {key: [value[row]] if isinstance(value, list) else value for key, value in passed.items()}
            try:
                self._ask(alone)
            except (Exception, SystemExit):
                return row
        return None


@functools.cache
def event_loop() -> asyncio.AbstractEventLoop:
    """The one loop for every call of an async reward, as a client or a lock of rewards.py keeps to its first."""
    loop = asyncio.new_event_loop()

    def run() -> None:
        while True:
            with suppress(SystemExit):  # of a reward: it ends run_forever, and reaches the one who waits
                loop.run_forever()

    threading.Thread(target=run, daemon=True).start()
    return loop


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
        there = reward.columns if data_columns is None else data_columns
        missing = ", ".join(column for column in reward.columns if column not in there)
        has = ", ".join(column for column in there if column != "prompt")  # which is ours
        if not missing:
            rewards.append(reward)
        elif reward.weight:
            problem = f"needs the column {missing}, but the data have {has}"
            remedy = "rename one (prompts.rename), set it here for all rows, or leave the reward out with null"
            raise error(f"rewards.{name}", f"{problem}; {remedy}")
        else:
            print(f"note: {name}, of weight 0, is left out, as the data have no column {missing}")
    return rewards


def given_up(before: float, fell: float, chance: float = 0.0) -> bool:
    """Whether a canary has lost over a quarter of its score, 0.05 at least, and more than may be `chance`.

    The one rule: of the log's warnings, of the checkpoint that recipes/best.yaml keeps, and of the verdict.
    """
    return fell > max(abs(before) / 4, 0.05, chance)


def flat_groups(scores: Scores, prompts: list) -> float | None:
    """The share of groups, the neighbours with the same prompt, in which the scores differ by less than FLAT.

    A group to which the reward does not apply is left out; None where it applies to none.
    """
    flat = []
    rows = zip(prompts, scores, strict=True)
    for _, group in itertools.groupby(rows, key=lambda row: row[0]):
        found = [score for _, score in group if score is not None]
        if found:
            flat.append(max(found) - min(found) < FLAT)
    return sum(flat) / len(flat) if flat else None


def logged_name(name: str) -> str:
    """Under which TRL logs a reward: of a reward model the last part of its name or folder."""
    return name.split("/")[-1]


def short(name: str) -> str:
    """`emoji_reward` as `emoji`."""
    return name.removesuffix("_reward")


def total(scores: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """The weighted sum of scores, of those rewards that apply; None where none does. TRL sums so."""
    weighted = [weight * scores[name] for name, weight in weights.items() if scores.get(name) is not None]
    return sum(weighted) if weighted else None


def reward_means(log: dict[str, float]) -> dict[str, float]:
    """The mean of each reward in one log of TRL's, by the name that it is logged under."""
    means = {}
    for key, value in log.items():
        if key.startswith("rewards/") and key.endswith("/mean"):
            means[key.split("/")[1]] = value
    return means


def score_words(scores: dict[str, float | None], between: str = ", ") -> str:
    """`emoji 4.00, length 0.74, answer –`"""
    words = []
    for name, score in scores.items():
        number = "–" if score is None else f"{score:.2f}"
        words.append(f"{short(name)} {number}")
    return between.join(words)


def _one_number_each(name: str, values: Any, passed: Passed) -> Scores:
    if hasattr(values, "tolist"):  # numpy arrays and torch tensors
        values = values.tolist()
    number = len(passed["completions"])
    if not isinstance(values, list | tuple) or len(values) != number:
        raise RewardError(
            f"rewards.{name}: returned {_shown(values)}; "
            f"expected a list of {counted(number, 'number')}, one per completion"
        )
    scores = []
    for row, value in enumerate(values):
        if value is not None and not _is_finite(value):
            raise RewardError(
                f"rewards.{name}: returned {_shown(value)} for {_row(row, passed)}; "
                f"expected a finite number below {HUGE:g}, or None where the reward does not apply"
            )
        scores.append(None if value is None else float(value))
    return scores


def _is_finite(value: Any) -> bool:
    if isinstance(value, str | bytes):  # which float would read
        return False
    try:
        return abs(float(value)) < HUGE  # which is false of a NaN
    except (TypeError, ValueError, RuntimeError, OverflowError):  # an array of several; a number of 400 digits
        return False


def _row(row: int, passed: Passed) -> str:
    prompt = _shown(_text(passed["prompts"][row]))
    completion = _shown(_text(passed["completions"][row]))
    return f"row {row} of the batch (prompt {prompt}, completion {completion})"


def _text(turns: Any) -> str:
    """A prompt or a completion; of chat messages the last one's."""
    return turns if isinstance(turns, str) else turns[-1]["content"] or ""


def _shown(value: Any) -> str:
    return one_line(repr(value), 80)


def _for_parquet(value: Any) -> str | None:
    """As a text, as a Parquet file refuses a column of several types."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
