"""How a run ends: 0 done, 2 it cannot work, 1 it failed on the way, 130 Ctrl-C, 143 SIGTERM; never a bare traceback."""

import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: `WHERE: WHAT; WHAT TO DO`, in one line."""


class RunError(Exception):
    """The run failed on the way; the message is one line."""


class Stopped(KeyboardInterrupt):
    """A signal stopped the run; not an Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


@contextmanager
def failures_logged(folder: str) -> Iterator[None]:
    """Turn what is raised inside into a RunError of one line, with the traceback in `folder`/error.log."""
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        log = Path(folder) / "error.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc(), encoding="utf-8")
            log = f"traceback: {log}"
        except OSError as problem:  # a full disk, say: then the terminal has to do
            traceback.print_exc()
            log = f"no traceback in {log}: {problem.strerror}"
        words = " ".join(str(error).split()) or type(error).__name__
        if type(error).__name__ == "OutOfMemoryError":
            remedy = "halve training.per_device_train_batch_size and double training.gradient_accumulation_steps"
            words = f"out of GPU memory ({words[:120]}); {remedy}"
        raise RunError(f"{words} ({log})") from error


def exit_status(main: Callable[[], None]) -> int:
    """Run `main` and tell what stopped it, if anything did."""

    def stop(number, frame):
        raise Stopped(number, "outside of training; --resume goes on from the newest checkpoint, if there is one")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        main()
    except (UserError, RunError) as error:
        if isinstance(error, RunError):
            from tqdm import tqdm

            for bar in list(getattr(tqdm, "_instances", [])):  # else they are drawn once more, below the error
                bar.close()
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except Stopped as stopped:
        print(f"\nstopped by {signal.Signals(stopped.number).name}: {stopped}", file=sys.stderr)
        return 128 + stopped.number
    return 0
