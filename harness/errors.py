"""Errors: how a run ends before its time, each with one line that says what is wrong, where, and what to do."""

import difflib
import signal
from collections.abc import Iterable
from typing import Any

# What PyTorch says, on a GPU also by a library that found no room for its workspace; and Python.
NO_MEMORY = ("out of memory", "OutOfMemoryError", "_STATUS_ALLOC_FAILED", "can't allocate memory", "MemoryError")
SMALLER = "halve training.per_device_train_batch_size and double training.gradient_accumulation_steps"


class Ending(BaseException):
    """Said in one line: on stderr by `exit_status`, and in a cell of a notebook that has called `main([...])`."""

    def in_words(self) -> str:
        return f"error: {self}"

    def _render_traceback_(self) -> list[str]:  # IPython's name for what it shows in place of a traceback
        return [self.in_words()]


class UserError(Ending, Exception):
    """Something the user can fix: `WHERE: WHAT; WHAT TO DO`, in one line."""


class RunError(Ending, Exception):
    """The run failed on the way; the message is one line."""


class RewardError(Ending, Exception):
    """A reward did what it must not; the message names the function, the row, the completion and the value."""


class Stopped(Ending, KeyboardInterrupt):
    """A signal stopped the run; no Exception, so that code on the way does not handle it as a failure."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number

    def in_words(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}: {self}"


def one_line(text: Any, most: int = 300) -> str:
    """Without line breaks, and at most so many characters of it."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def in_short(error: BaseException) -> str:
    """`ValueError: its message`, in one line."""
    return f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")


def counted(number: float, thing: str) -> str:
    """`1 step`, `1,250 steps`."""
    plural = "" if number == 1 else "s"
    return f"{number:,.10g} {thing}{plural}"


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`, did you mean NAME?`, with the nearest of the known names; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f", did you mean {near[0]}?" if near else ""


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine had too little memory."""
    said = in_short(error)
    return any(words in said for words in NO_MEMORY)
