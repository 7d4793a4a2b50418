"""How a run ends: with exit status 0 (done), 2 (its settings, data or machine cannot work), 1 (it failed on the way) or
128 + N (stopped by signal N), and one line on stderr. Also two small helpers that everything else may import.
"""

import logging
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

# SIGHUP: the terminal is gone (an ssh connection lost). SIGUSR1: Slurm's warning before it takes the machine back.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class UserError(Exception):
    """Something the user can fix: `WHERE: WHAT; WHAT TO DO`, in one line."""


class RunError(Exception):
    """The run failed on the way; the message is one line."""


class Stopped(KeyboardInterrupt):
    """A signal stopped the run; no Exception, so that code on the way does not handle it as a failure."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


def in_short(error: BaseException) -> str:
    """`ValueError: its message`, in one line, at most 200 characters of it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def write_whole(path: Path, text: str) -> None:
    """Write `text` so that a kill or a full disk leaves the old file or the new one, and never half of one."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


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
        except OSError as problem:  # a full disk, for example: print the traceback instead
            traceback.print_exc()
            log = f"no traceback in {log}: {problem.strerror}"
        words = " ".join(str(error).split()) or type(error).__name__
        if type(error).__name__ == "OutOfMemoryError":
            remedy = "halve training.per_device_train_batch_size and double training.gradient_accumulation_steps"
            words = f"out of GPU memory ({words[:120]}); {remedy}"
        raise RunError(f"{words} ({log})") from error


def catch_signals(handler: Callable) -> dict[int, Any]:
    """Let `handler` take SIGNALS, apart from those that are ignored (nohup); returns what took them before."""
    return {n: signal.signal(n, handler) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}


def write_nowhere_if_hung_up(number: int) -> None:
    """After SIGHUP: what is printed goes nowhere, as an error in writing to the lost terminal would end the run."""
    if number == getattr(signal, "SIGHUP", None):
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def exit_status(
    main: Callable[[], None],
    if_stopped: str = "outside of training; --resume goes on from the newest checkpoint, if there is one",
) -> int:
    """Run `main`, print what stopped it, if anything did, and return the exit status."""

    def stop(number, frame):
        write_nowhere_if_hung_up(number)
        raise Stopped(number, if_stopped)

    catch_signals(stop)
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL's, on what transformers 6 will rename
    for name in ("torchao", "torch.utils._pytree"):  # on CUDA kernels that are not there, and what torch will rename
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        main()
    except (UserError, RunError) as error:
        if isinstance(error, RunError):
            from tqdm import tqdm

            for bar in list(getattr(tqdm, "_instances", [])):  # or they would be drawn once more, below the error
                bar.close()
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except Stopped as stopped:
        print(f"\nstopped by {signal.Signals(stopped.number).name}: {stopped}", file=sys.stderr)
        return 128 + stopped.number
    return 0


def go_offline_without_network() -> None:
    """Set HF_HUB_OFFLINE where the Hub's name does not resolve: upstream would retry for half a minute a file.

    To be called before huggingface_hub is imported, which reads it then.
    """
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    if "HF_HUB_OFFLINE" in os.environ or getproxies():  # a proxy resolves names for us
        return
    try:
        socket.getaddrinfo(endpoint, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
