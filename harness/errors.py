"""Errors: how a run ends before its time, each with one line that says what is wrong, where, and what to do."""

import signal
from typing import Any

# What PyTorch says on a GPU: by its own OutOfMemoryError, or by a library that found no room for its workspace.
GPU_IS_FULL = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
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


def one_line(text: Any) -> str:
    """Without line breaks, and at most 300 characters of it."""
    return " ".join(str(text).split())[:300]


def in_short(error: BaseException) -> str:
    """`ValueError: its message`, in one line."""
    return f"{type(error).__name__}: {one_line(error)}"


def out_of_memory(error: Exception) -> bool:
    """Whether a GPU or the machine had too little memory, by the words of PyTorch and of ours."""
    words = ("out of GPU memory", "out of memory", "can't allocate memory", "MemoryError")
    return any(each in f"{type(error).__name__}: {error}" for each in words)
