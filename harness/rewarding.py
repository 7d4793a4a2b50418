"""The user's rewards: found in rewards.py, given their settings, and checked on every call.

TRL takes a dict's keys for rewards, and sets a whole group to zero where one value is inf. Here a reward returns one
finite number per completion, or None where it does not apply; otherwise the run ends and names the row.
This module imports no torch, so that `python rewards.py` is quick.
"""

import asyncio
import difflib
import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.exits import UserError, in_short

if TYPE_CHECKING:
    from harness.settings import Settings

try:
    import rewards
except Exception as error:  # any mistake in the user's own file
    place = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
    raise UserError(f"rewards.py{place}: does not import ({in_short(error)}); fix it there") from error

# What TRL passes to every reward beside the data's columns.
PASSED = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
HUGE = 1e9  # above it TRL's float32 standard deviation overflows, and a group's differences are rounded away
FLAT = 1e-3  # a smaller spread in a group counts as none: TRL divides by the spread, which would amplify noise


class RewardError(Exception):
    """A reward did what it must not; the message names the function, the row, the completion and the value."""


def public_functions() -> dict[str, Callable]:
    return {name: f for name, f in vars(rewards).items() if inspect.isfunction(f) and not name.startswith("_")}


def reward_functions() -> dict[str, Callable]:
    """The rewards of rewards.py by name: its public functions that take `completions`."""
    return {name: f for name, f in public_functions().items() if "completions" in inspect.signature(f).parameters}


def columns(reward: Callable) -> list[str]:
    """The columns of the data set that a reward needs: its parameters without a default that TRL does not pass."""
    parameters = inspect.signature(reward).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [name for name in required if name not in PASSED]


def why_no_reward(name: str) -> str | None:
    """What is wrong with a name under `rewards` in the settings, or None: it names a function, or a reward model."""
    functions, function = reward_functions(), vars(rewards).get(name)
    if name in functions:
        kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
        problem = "takes no **kwargs, and TRL passes more than it names; add **kwargs to it in rewards.py"
        return None if inspect.Parameter.VAR_KEYWORD in kinds else problem
    if inspect.isfunction(function):
        return "has no parameter `completions`, which TRL passes; name it so in rewards.py"
    if "/" in name or Path(name).is_dir():
        return None
    near = difflib.get_close_matches(name, functions, n=1, cutoff=0.5)
    problem = f"no such function in rewards.py{f', did you mean {near[0]}?' if near else ''}"
    return f"{problem}; it has {', '.join(functions)}; a reward model goes by its Hub name (owner/name) or folder"


def logged_name(name: str) -> str:
    """Under which TRL logs a reward: of a reward model the last part of its name or folder."""
    return name.split("/")[-1]


def title(name: str) -> str:
    """What a reward measures: the first line of its docstring."""
    function = reward_functions().get(name)
    return (function.__doc__ or name).strip().splitlines()[0] if function else "a reward model's score"


def details(entry: dict[str, Any]) -> str:
    """` (target_length 30, alpha 0.15)`: what an entry of the section `rewards` sets but its weight."""
    words = ", ".join(f"{key} {value}" for key, value in entry.items() if key != "weight")
    return words and f" ({words})"


def build_rewards(settings: "Settings", data_columns: list[str]) -> list[Callable | str]:
    """For each entry of the section `rewards` its function, with its settings and checked, or a reward model's name.

    A reward that needs a column which the data do not have is a UserError; of weight 0 it is left out of
    `settings.rewards`, and said so.
    """
    functions, built, entries = reward_functions(), [], {}
    for name, entry in settings.rewards.items():
        missing = ", ".join(sorted(set(columns(functions[name])) - set(data_columns))) if name in functions else ""
        if missing and not entry["weight"]:
            print(f"note: {name}, of weight 0, is left out, as the data have no column {missing}")
            continue
        if missing:
            has = ", ".join(column for column in data_columns if column != "prompt")
            problem = f"needs the column {missing}, but the data have {has}; rename one (prompts.rename), or set "
            raise settings.error(f"rewards.{name}", f"{problem}rewards.{name}: null to leave the reward out")
        arguments = {key: value for key, value in entry.items() if key != "weight"}
        built.append(checked(name, functools.partial(functions[name], **arguments)) if name in functions else name)
        entries[name] = entry
    settings.rewards = entries
    return built


def checked(name: str, reward: Callable) -> Callable:
    """`reward`, called by the name `name`, with every result checked; raises RewardError.

    Each call logs the mean length in characters, and the share of groups in which all completions score alike.
    """

    def check(values: Any, prompts: list, completions: list, log_metric: Callable) -> list[float | None]:
        values = _one_number_each(name, values, prompts, completions)
        lengths = [len(c if isinstance(c, str) else c[-1]["content"] or "") for c in completions]
        log_metric("completions/mean_characters", sum(lengths) / len(lengths))  # TRL counts tokens only
        log_metric(f"rewards/{name}/flat_groups", flat_groups(values, prompts))
        return values

    @contextmanager
    def failure_named(prompts: list, completions: list, others: dict[str, Any]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            row = _first_row_that_raises(reward, prompts, completions, others)
            where = "" if row is None else f" on {_row(row, prompts, completions)}"
            remedy = "fix it in rewards.py; if it was the network, --resume goes on from the newest checkpoint"
            raise RewardError(f"rewards.{name}: raised {in_short(error)}{where}; {remedy}") from error

    def call(prompts, completions, **others):
        with failure_named(prompts, completions, others):
            values = reward(prompts=prompts, completions=completions, **others)
        return check(values, prompts, completions, others["log_metric"])

    async def call_async(prompts, completions, **others):
        with failure_named(prompts, completions, others):
            values = await reward(prompts=prompts, completions=completions, **others)
        return check(values, prompts, completions, others["log_metric"])

    call = call_async if inspect.iscoroutinefunction(reward) else call
    call.__name__ = name  # TRL logs a reward under its function's name
    return call


def flat_groups(values: list[float | None], prompts: list) -> float:
    """The share of groups, the neighbours with the same prompt, in which the values differ by less than FLAT."""
    groups = itertools.groupby(zip(prompts, values, strict=True), key=lambda pair: pair[0])
    scores = [[value for _, value in group if value is not None] for _, group in groups]
    flat = [not group or max(group) - min(group) < FLAT for group in scores]
    return sum(flat) / len(flat)


def score(reward: Callable, prompts: list, completions: list, others: dict[str, list], state: Any = None) -> list:
    """Call a reward outside training as TRL would call it; an async one is waited for. `state`: a TrainerState."""
    extra = {"trainer_state": state, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
    ids = [[0]] * len(completions)
    result = reward(prompts=prompts, completions=completions, completion_ids=ids, **others, **extra)
    return asyncio.run(result) if inspect.isawaitable(result) else result


def main() -> None:
    """Score the text of the command line, or each line of stdin, with every reward that needs nothing but the text."""
    texts = [" ".join(sys.argv[1:])] if sys.argv[1:] else sys.stdin.read().splitlines()
    for name in public_functions():
        if problem := why_no_reward(name):
            print(f"note: {name}: {problem}", file=sys.stderr)
    functions = {name: checked(name, f) for name, f in reward_functions().items() if not columns(f)}
    print("\t".join([*functions, "characters", "text"]))
    for text in texts:
        try:  # as chat messages, which is how training passes them
            scores = [score(f, [""], [[{"role": "assistant", "content": text}]], {})[0] for f in functions.values()]
        except RewardError as error:
            sys.exit(f"error: {error}")
        print("\t".join([*("None" if s is None else f"{s:.4g}" for s in scores), str(len(text)), text]))


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


def _first_row_that_raises(reward: Callable, prompts: list, completions: list, others: dict[str, Any]) -> int | None:
    for row in () if inspect.iscoroutinefunction(reward) else range(len(completions)):
        one = {key: [value[row]] if isinstance(value, list) else value for key, value in others.items()}
        try:
            reward(prompts=[prompts[row]], completions=[completions[row]], **one)
        except Exception:
            return row
    return None


def _row(row: int, prompts: list, completions: list) -> str:
    prompt, completion = (value[row] for value in (prompts, completions))
    prompt, completion = (v if isinstance(v, str) else v[-1]["content"] for v in (prompt, completion))
    return f"row {row} of the batch (prompt {_short(prompt)}, completion {_short(completion)})"


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
