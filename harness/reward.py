"""Reward: one entry of the section `rewards`: a function of rewards.py, or a reward model; its calls are checked.

TRL takes a dict's keys for rewards, and sets a whole group to zero where one value is inf. Here a reward returns one
finite number per completion, or None where it does not apply; otherwise the run ends and names the row.
This module imports no torch, so that `python rewards.py` is quick, and the user's rewards.py only when it is asked for.
"""

import asyncio
import difflib
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.errors import RewardError, UserError, in_short

# What TRL passes to every reward beside the data's columns.
FROM_TRL = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
HUGE = 1e9  # above it TRL's float32 standard deviation overflows, and a group's differences are rounded away
FLAT = 1e-3  # a smaller spread in a group counts as none: TRL divides by the spread, which would amplify noise


@dataclass
class Reward:
    """A reward as config.yaml names and weighs it; of weight 0 it is a canary: logged, and not trained on.

    `settings`: its own arguments. `function` is None for a reward model, of which `name` is the Hub name or folder;
    `model` and `tokenizer` are set when it is loaded.
    """

    name: str
    weight: float
    settings: dict[str, Any]
    function: Callable | None
    model: Any = None
    tokenizer: Any = None

    @property
    def logged(self) -> str:
        return logged_name(self.name)

    @property
    def columns(self) -> list[str]:
        return columns(self.function) if self.function else []

    @property
    def title(self) -> str:
        """What it measures: the first line of its docstring."""
        doc = (self.function.__doc__ or self.name) if self.function else "a reward model's score"
        return doc.strip().splitlines()[0]

    def __str__(self) -> str:
        """`length_reward (target_length 30, alpha 0.15)`"""
        words = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return self.name + (words and f" ({words})")

    def for_trl(self) -> Callable | Any:
        """The loaded model; or the function as TRL calls it, with every result checked; raises RewardError.

        Each call logs the mean length in characters, and the share of groups in which all completions score alike.
        """
        if self.function is None:
            return self.model

        def check(values: Any, prompts: list, completions: list, log_metric: Callable) -> list[float | None]:
            values = _one_number_each(self.name, values, prompts, completions)
            lengths = [len(c if isinstance(c, str) else c[-1]["content"] or "") for c in completions]
            log_metric("completions/mean_characters", sum(lengths) / len(lengths))  # TRL counts tokens only
            log_metric(f"rewards/{self.name}/flat_groups", flat_groups(values, prompts))
            return values

        def call(**passed):
            with self._failure_named(passed):
                values = self._ask(passed)
            return check(values, passed["prompts"], passed["completions"], passed["log_metric"])

        async def call_async(**passed):
            with self._failure_named(passed):
                values = await self._ask(passed)
            return check(values, passed["prompts"], passed["completions"], passed["log_metric"])

        call = call_async if inspect.iscoroutinefunction(self.function) else call
        call.__name__ = self.name  # TRL logs a reward under its function's name
        return call

    def score(self, prompts: list, completions: list, others: dict[str, list], state: Any = None) -> list[float | None]:
        """Call the function outside training as TRL would; `others`: columns, `state`: a TrainerState."""
        passed = {"prompts": prompts, "completions": completions, "completion_ids": [[0]] * len(completions), **others}
        passed |= {"trainer_state": state, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
        result = self.for_trl()(**passed)
        return asyncio.run(result) if inspect.isawaitable(result) else result

    def _ask(self, passed: dict[str, Any]) -> Any:
        """Call the function with what it names of what TRL passes, and with its settings."""
        parameters = inspect.signature(self.function).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        named = {name: value for name, value in passed.items() if takes_all or name in parameters}
        return self.function(**named, **self.settings)

    @contextmanager
    def _failure_named(self, passed: dict[str, Any]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            row = self._first_row_that_raises(passed)
            where = "" if row is None else f" on {_row(row, passed['prompts'], passed['completions'])}"
            remedy = "fix it in rewards.py (a run that the network has stopped goes on with --resume)"
            raise RewardError(f"rewards.{self.name}: raised {in_short(error)}{where}; {remedy}") from error

    def _first_row_that_raises(self, passed: dict[str, Any]) -> int | None:
        for row in () if inspect.iscoroutinefunction(self.function) else range(len(passed["completions"])):
            try:
                self._ask({key: [value[row]] if isinstance(value, list) else value for key, value in passed.items()})
            except Exception:
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
        reward = Reward(name, entry["weight"], settings, reward_functions().get(name))
        missing = ", ".join(sorted(set(reward.columns) - set(data_columns))) if data_columns is not None else ""
        if missing and not reward.weight:
            print(f"note: {name}, of weight 0, is left out, as the data have no column {missing}")
            continue
        if missing:
            has = ", ".join(column for column in data_columns if column != "prompt")
            problem = f"needs the column {missing}, but the data have {has}; rename one (prompts.rename), or set "
            raise error(f"rewards.{name}", f"{problem}rewards.{name}: null to leave the reward out")
        rewards.append(reward)
    return rewards


def rewards_py() -> ModuleType:
    """The user's rewards.py; raises UserError where it does not import."""
    try:
        import rewards
    except Exception as error:  # any mistake in the user's own file
        place = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"rewards.py{place}: does not import ({in_short(error)}); fix it there") from error
    return rewards


def source() -> str:
    """The text of rewards.py."""
    return Path(rewards_py().__file__).read_text(encoding="utf-8")


def public_functions() -> dict[str, Callable]:
    return {name: f for name, f in vars(rewards_py()).items() if inspect.isfunction(f) and not name.startswith("_")}


def reward_functions() -> dict[str, Callable]:
    """The rewards of rewards.py by name: its public functions that take `completions`."""
    return {name: f for name, f in public_functions().items() if "completions" in inspect.signature(f).parameters}


def columns(function: Callable) -> list[str]:
    """The columns of the data set that a function needs: its parameters without a default that TRL does not pass."""
    parameters = inspect.signature(function).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [name for name in required if name not in FROM_TRL]


def why_no_reward(name: str) -> str | None:
    """What is wrong with a name under `rewards` in the settings, or None: it names a function, or a reward model."""
    functions = reward_functions()
    if name in functions:
        return None
    if inspect.isfunction(vars(rewards_py()).get(name)):
        return "has no parameter `completions`, which TRL passes; name it so in rewards.py"
    if "/" in name or Path(name).is_dir():
        return None
    near = difflib.get_close_matches(name, functions, n=1, cutoff=0.5)
    problem = f"no such function in rewards.py{f', did you mean {near[0]}?' if near else ''}"
    return f"{problem}; it has {', '.join(functions)}; a reward model goes by its Hub name (owner/name) or folder"


def flat_groups(values: list[float | None], prompts: list) -> float:
    """The share of groups, the neighbours with the same prompt, in which the values differ by less than FLAT."""
    groups = itertools.groupby(zip(prompts, values, strict=True), key=lambda pair: pair[0])
    scores = [[value for _, value in group if value is not None] for _, group in groups]
    flat = [not group or max(group) - min(group) < FLAT for group in scores]
    return sum(flat) / len(flat)


def logged_name(name: str) -> str:
    """Under which TRL logs a reward: of a reward model the last part of its name or folder."""
    return name.split("/")[-1]


def reward_means(log: dict[str, float]) -> dict[str, float]:
    """The mean of each reward in one log of TRL's, by the name that it is logged under."""
    return {key.split("/")[1]: log[key] for key in log if key.startswith("rewards/") and key.endswith("/mean")}


def score_words(scores: dict[str, float | None], between: str = ", ") -> str:
    """`emoji 4.00, length 0.74, answer –`"""
    words = {name.removesuffix("_reward"): "–" if score is None else f"{score:.2f}" for name, score in scores.items()}
    return between.join(f"{name} {score}" for name, score in words.items())


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


def _row(row: int, prompts: list, completions: list) -> str:
    prompt, completion = (value[row] for value in (prompts, completions))
    prompt, completion = (v if isinstance(v, str) else v[-1]["content"] for v in (prompt, completion))
    return f"row {row} of the batch (prompt {_short(prompt)}, completion {_short(completion)})"


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
