"""Stop: what a signal does. Outside of training it ends the program at once; in training the step is finished first."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from harness.processes import launched, rank

# SIGHUP: the terminal is gone (an ssh connection lost). SIGUSR1: Slurm's warning before it takes the machine back.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
REPEATED = 3  # seconds in which a signal that comes again is the same one
Handler = Callable[[int], None]
STOPPING = b"\nstopping: an optimizer step that has begun is finished and saved first; once more stops at once\n"


def end_children() -> None:
    """Kill what a reward has started and not ended: Python would wait for it, and most signals it ignores."""
    for child in multiprocessing.active_children():
        child.kill()


def end_at_once(number: int) -> None:
    """Do what the signal does to a process that does not handle it."""
    end_children()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class Stop:
    """The one handler of SIGNALS; `number` is the signal that has come, or None.

    One that comes again within REPEATED seconds is the same one: a launcher hands it on, a shell sends SIGHUP twice.
    Ctrl-C at a terminal is always meant. Signals that are ignored (nohup) stay ignored.
    """

    def __init__(self):
        self.number: int | None = None
        self.since = -REPEATED
        self.first: Handler = end_at_once
        self.again: Handler = end_at_once
        self.blocked: set[int] | None = None  # by this thread, before it forked; None before listen()

    def listen(self, first: Handler, again: Handler = end_at_once) -> None:
        """From now on let the first signal call `first`, and a later one `again`."""
        self.first, self.again = first, again
        self._take(self._handle)

    @contextmanager
    def left_to_system(self) -> Iterator[None]:
        """Inside, a signal ends the process at once: for what waits in C++, where no handler of Python's is called."""
        handlers = self._take(signal.SIG_DFL)
        try:
            yield
        finally:
            _put_back(handlers)

    @contextmanager
    def after_step(self) -> Iterator[None]:
        """Inside, the first signal only sets `number`, at which training looks after each optimizer step."""
        first = self.first
        handlers = self._take(self._handle)
        self.first = _say_so
        if self.number is None:  # one of an earlier training in this process is no more
            self.since = -REPEATED
        try:
            yield
        finally:
            self.first = first
            self.number = None  # one that came after the last step has stopped nothing
            _put_back(handlers)

    def _take(self, handler: Any) -> dict[int, Any]:
        """Have `handler` handle the signals from now on; returns what handled them before."""
        if self.blocked is None:
            self.blocked = set()
            os.register_at_fork(before=self._fork, after_in_parent=self._unblock, after_in_child=self._in_child)
        before = {}
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        return before

    def _fork(self) -> None:
        # A signal that comes between the fork and _in_child would be handled, and lost, in the child.
        self.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.blocked)

    def _in_child(self) -> None:
        """A reward's child, or a worker that loads data: SIGTERM ends it, as Process.terminate() and Pool want.

        The others it ignores. They come to the whole group (Ctrl-C, a lost terminal, Slurm's warning), and its parent
        finishes a step first, which may be waiting for it.
        """
        for number in SIGNALS:
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
        self.number = None
        self._unblock()

    def _handle(self, number: int, frame) -> None:
        now = time.monotonic()
        is_the_same = now < self.since + REPEATED and not (number == signal.SIGINT and os.isatty(0))
        if is_the_same:  # also where the first has just stopped the run, and the rest is written
            return
        if self.number is None:
            self.number = number
            self.since = now
            self.first(number)
        else:
            self.again(number)


stop = Stop()  # a process has one, as it has one set of handlers


def say_stopping() -> None:
    with suppress(OSError):  # nobody reads it any more
        os.write(2, STOPPING)  # not print(), which may be what the signal has interrupted


def _say_so(number: int) -> None:
    if rank() == 0 and not launched():  # harness.tools.launch says it for all its processes
        say_stopping()


def _put_back(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
