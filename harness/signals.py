"""Signals that stop a run, and which repeats of one to ignore."""

import os
import signal
import stat
import time
from collections.abc import Callable
from typing import Any

# SIGHUP: the terminal is gone (an ssh connection lost). SIGUSR1: Slurm's warning before it takes the machine back.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
REPEATED = 3  # seconds in which a signal that comes again is the same one
STOPPING = b"\nstopping: an optimizer step that has begun is finished and saved first; once more stops at once\n"


def take_signals(first: Callable[[int], None], again: Callable[[int], None]) -> dict[int, Any]:
    """Let the first of SIGNALS call `first`, and a later one `again`; returns what took them before.

    One that comes again within REPEATED seconds is the same one: a launcher hands it on, a shell sends SIGHUP twice.
    Ctrl-C at a terminal is always meant. Signals that are ignored (nohup) stay ignored.
    """
    came: list[float] = []

    def handler(number, frame):
        if not came:
            came.append(time.monotonic())
            if number == getattr(signal, "SIGHUP", None):
                _leave_terminal()
            first(number)
        elif time.monotonic() > came[0] + REPEATED or (number == signal.SIGINT and os.isatty(0)):
            again(number)

    return {n: signal.signal(n, handler) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}


def end_at_once(number: int) -> None:
    """Do what the signal does to a process that does not handle it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _leave_terminal() -> None:
    """Print to nowhere from now on: an error in writing to a terminal that is gone would end the run."""
    for stream in (1, 2):
        if not stat.S_ISREG(os.fstat(stream).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
