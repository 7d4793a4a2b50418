"""The contract of a reward, held on every batch: one finite number (or None) per completion, or a name and a row.

TRL takes a dict's keys for rewards, zeroes a whole group over one inf, and trains on nothing at all where all is None.
"""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import TrainerState
from trl.trainer.utils import get_callable_name, is_async_callable

HUGE = 1e9  # far beyond it TRL's float32 standard deviation overflows, and a group's differences round away


class RewardError(Exception):
    """A reward function broke its contract; the message names the function, the row, the completion and the value."""


def guarded(reward: Callable) -> Callable:
    """`reward` under its own name, with every call checked; raises RewardError before the batch reaches the loss."""
    name = get_callable_name(reward)

    if is_async_callable(reward):

        async def checked(prompts, completions, **columns):
            try:
                values = await reward(prompts=prompts, completions=completions, **columns)
            except Exception as error:
                raise RewardError(f"rewards.{name}: raised {_words(error)}; mend it in rewards.py") from error
            return _checked(name, values, prompts, completions)
    else:

        def checked(prompts, completions, **columns):
            try:
                values = reward(prompts=prompts, completions=completions, **columns)
            except Exception as error:
                row = _first_row_that_raises(reward, prompts, completions, columns)
                where = "" if row is None else f" on {_row(row, prompts, completions)}"
                raise RewardError(f"rewards.{name}: raised {_words(error)}{where}; mend it in rewards.py") from error
            # What the length reward works on; TRL counts tokens alone. Averaged, so each reward may log it.
            lengths = [len(c if isinstance(c, str) else c[-1]["content"] or "") for c in completions]
            columns["log_metric"]("completions/mean_characters", sum(lengths) / len(lengths))
            return _checked(name, values, prompts, completions)

    checked.__name__ = name  # a function's name is its metric's name
    return checked


def score(reward: Callable, prompts: list, completions: list, columns: dict[str, list], state: TrainerState) -> list:
    """Call a guarded reward outside training, as TRL would call it; an async one is waited for."""
    extra = {"trainer_state": state, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
    ids = [[0]] * len(completions)
    result = reward(prompts=prompts, completions=completions, completion_ids=ids, **columns, **extra)
    return asyncio.run(result) if inspect.isawaitable(result) else result


def _checked(name: str, values: Any, prompts: list, completions: list) -> list[float | None]:
    """`values` as TRL can take them: a list of one finite float or None for each completion."""
    expected = f"expected a list of {len(completions)} numbers, one per completion"
    if hasattr(values, "tolist"):  # numpy arrays and torch tensors
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise RewardError(f"rewards.{name}: returned the {type(values).__name__} {_short(values)}; {expected}")
    if len(values) != len(completions):
        raise RewardError(f"rewards.{name}: returned {len(values)} values; {expected}")
    for row, value in enumerate(values):
        number = isinstance(value, int | float | np.number | np.bool_) or hasattr(value, "item")
        if value is not None and not (number and abs(float(value)) < HUGE):  # a NaN compares false
            raise RewardError(
                f"rewards.{name}: returned {_short(value)} for {_row(row, prompts, completions)}; "
                f"expected a finite number below {HUGE:g}, or None where the reward does not apply"
            )
    if all(value is None for value in values):
        raise RewardError(f"rewards.{name}: returned None for all {len(values)} completions; {expected}")
    return [None if value is None else float(value) for value in values]


def _first_row_that_raises(reward: Callable, prompts: list, completions: list, columns: dict[str, Any]) -> int | None:
    for row in range(len(completions)):
        one = {key: [value[row]] if isinstance(value, list) else value for key, value in columns.items()}
        try:
            reward(prompts=[prompts[row]], completions=[completions[row]], **one)
        except Exception:
            return row
    return None


def _row(row: int, prompts: list, completions: list) -> str:
    prompt, completion = (value[row] for value in (prompts, completions))
    prompt, completion = (v if isinstance(v, str) else v[-1]["content"] for v in (prompt, completion))
    return f"row {row} of the batch (prompt {_short(prompt)}, completion {_short(completion)})"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {_short(str(error))}"


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
