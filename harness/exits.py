"""How a run ends: with exit status 0 (done), 2 (its settings, data or machine cannot work), 1 (it failed on the way) or
128 + N (stopped by signal N), one line on stderr, and status.json. Also small helpers for everything else.
"""

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from harness.signals import end_at_once, take_signals

ENDS = "TRAIN_GRPO_ENDS"  # environment variable: the folder where each process writes its last line for harness.launch
SMALLER = "halve training.per_device_train_batch_size and double training.gradient_accumulation_steps"
pending: list[int] = []  # signals that have come outside of training


def rank() -> int:
    """Of this process among those of the run; 0 where there is one only."""
    return int(os.environ.get("RANK", 0))


class UserError(Exception):
    """Something the user can fix: `WHERE: WHAT; WHAT TO DO`, in one line."""


class RunError(Exception):
    """The run failed on the way; the message is one line."""


class Stopped(KeyboardInterrupt):
    """A signal stopped the run; no Exception, so that code on the way does not handle it as a failure."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


def one_line(text: Any) -> str:
    """Without line breaks, and at most 300 characters of it."""
    return " ".join(str(text).split())[:300]


def in_short(error: BaseException) -> str:
    """`ValueError: its message`, in one line."""
    return f"{type(error).__name__}: {one_line(error)}"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` so that whoever reads it, also after a kill, finds the old file or the new, never half of one."""
    temporary = path.with_name(f"_{path.name}.tmp")  # what begins with _ is not uploaded: it may be gone in mid-upload
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def write_status(folder: str, status: str, exit_status: int | None = None, **more: int) -> None:
    """`folder`/status.json, for a script to read: running, done, failed or stopped; the exit status; and the step."""
    with suppress(OSError):  # a full disk, which is reported elsewhere
        known = read_status(folder) | {"status": status, "exit_status": exit_status} | more
        write_whole(Path(folder) / "status.json", json.dumps(known))


def read_status(folder: str) -> dict[str, Any]:
    """What write_status has written there; {} where there is nothing, or half a file."""
    try:
        return json.loads((Path(folder) / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextmanager
def outcome_written(folder: str) -> Iterator[None]:
    """Write status.json, and turn what is raised inside into a RunError of one line, with the traceback in error.log.

    Of several processes rank 0 writes it; where harness.launch has started them, the first one that fails instead.
    """
    ended: tuple[str, int] = ("failed", 1)
    try:
        if rank() == 0:
            write_status(folder, "running")
        yield
        ended = ("done", 0)
    except Stopped as stopped:
        ended = ("stopped", 128 + stopped.number)
        raise
    except UserError:
        ended = ("failed", 2)
        raise
    except RunError:
        raise
    except Exception as error:
        raise RunError(_with_traceback(error, Path(folder) / "error.log")) from error
    finally:
        if (rank() == 0 or ended[0] == "failed") and not failed_elsewhere():
            write_status(folder, *ended)


def failed_elsewhere() -> bool:
    """Whether another process of this run has failed before; only harness.launch lets its processes know."""
    ends = Path(os.environ[ENDS]).glob("*.json") if ENDS in os.environ else ()
    return any(json.loads(end.read_text(encoding="utf-8"))["status"] in (1, 2) for end in ends)


def _with_traceback(error: Exception, log: Path) -> str:
    """What to tell the user, and where the traceback is."""
    where = f"traceback: {log}"
    try:
        if not failed_elsewhere():
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError as problem:  # a full disk, for example: print the traceback instead
        traceback.print_exc()
        where = f"no traceback in {log}: {problem.strerror}"
    words = one_line(error) or type(error).__name__
    if type(error).__name__ == "OutOfMemoryError":
        words = f"out of GPU memory ({words[:120]}); {SMALLER}"
    return f"{words} ({where})"


def exit_status(
    main: Callable[[], None],
    if_stopped: str = "outside of training; --resume goes on from the newest checkpoint, if there is one",
) -> int:
    """Run `main`, print what stopped it, if anything did, and return the exit status."""

    over: list[bool] = []

    def stop(number):
        if over:  # Python is cleaning up; the exit status is known
            return
        pending.append(number)  # if Python swallows the exception (a weakref's callback), training finds it here
        raise Stopped(number, if_stopped)

    take_signals(stop, end_at_once)
    if rank():
        _be_silent()
    if ENDS in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: stop, and save, where harness.launch is killed
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL's, on what transformers 6 will rename
    for name in ("torchao", "torch.utils._pytree"):  # on CUDA kernels that are not there, and what torch will rename
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        try:
            main()
        finally:
            over.append(True)
    except (UserError, RunError) as error:
        if isinstance(error, RunError):
            from tqdm import tqdm

            for bar in list(getattr(tqdm, "_instances", [])):  # or they would be drawn once more, below the error
                bar.close()
        return _say(f"error: {error}", 2 if isinstance(error, UserError) else 1)
    except Stopped as stopped:
        return _say(f"\nstopped by {signal.Signals(stopped.number).name}: {stopped}", 128 + stopped.number)
    except SystemExit as done:  # --help, --print_config, a run that is done already
        return _say("", done.code or 0)
    return _say("", 0)


def _say(line: str, status: int) -> int:
    """Print how this process ends; where harness.launch has started it, leave that to it."""
    if folder := os.environ.get(ENDS):
        end = {"time": time.time(), "line": line, "status": status}
        write_whole(Path(folder) / f"{rank()}.json", json.dumps(end))
    elif line:
        print(line, file=sys.stderr)
    return status


def _be_silent() -> None:
    """For all processes of a run but the first: its plan, bars and warnings are enough."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  it stays open
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


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
