"""End: the exit status of a program, and one line on stderr that says why.

0: done. 2: its settings, data or machine cannot work. 1: it failed on the way. 128 + N: stopped by signal N.
"""

import ctypes
import io
import logging
import os
import re
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from harness.during.stop import end_children, stop
from harness.errors import RewardError, RunError, Stopped, UserError
from harness.processes import launched, write_end

# OpenMP's threads that spin while they wait take the cores from each other where anything else runs (benchmarks).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, as each program imports this file first

# At their import, on CUDA kernels that are not there and what torch will rename; here, for a notebook that imports us.
for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)


class _Outlet(io.FileIO):
    """What cannot be written, as the terminal or a pipe's reader is gone, or the disk full, is dropped."""

    def write(self, data):
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def _never_failing(stream: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """The same stream with an _Outlet, and a ? for each character that its encoding lacks."""
    if stream is None:  # closed, as by >&- in a shell
        return open(os.devnull, "w", encoding="utf-8")
    stream.flush()
    outlet = io.BufferedWriter(_Outlet(stream.fileno(), "w", closefd=False))
    at_once = stream.line_buffering or stream.write_through
    return io.TextIOWrapper(outlet, stream.encoding, "replace", line_buffering=at_once)


def exit_status(
    main: Callable[[], None],
    if_stopped: str = "outside of training; --resume goes on from the newest checkpoint, if there is one",
) -> int:
    """Run `main`, print what stopped it, if anything did, and return the exit status."""

    def stopped(number: int) -> None:
        raise Stopped(number, if_stopped)  # where Python swallows it (a weakref's callback), training sees stop.number

    sys.stdout = _never_failing(sys.stdout)
    sys.stderr = _never_failing(sys.stderr)
    stop.listen(stopped)
    if launched() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: stop, and save, where the launcher is killed
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL's, on what transformers 6 will rename
    try:
        try:
            main()
        finally:
            stop.listen(lambda number: None)  # Python is cleaning up; the exit status is known
            end_children()
    except UserError as error:
        return _say(error.in_words(), 2)
    except (RunError, RewardError) as error:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", [])):  # or they would be drawn once more, below the error
            bar.close()
        return _say(error.in_words(), 1)
    except Stopped as error:
        return _say(f"\n{error.in_words()}", 128 + error.number)
    except SystemExit as done:  # --help, --print_config, a run that is done already
        return _say("", done.code or 0)
    except Exception as error:
        problem = in_place_of_a_package(error) or how_to_install(error)
        if not problem:
            raise
        return _say(f"error: {problem}", 2)
    return _say("", 0)


def in_place_of_a_package(error: Exception) -> str | None:
    """What lies beside the program, and is taken for a package that the traceback speaks of; None where nothing is."""
    said = "".join(traceback.format_exception(error))
    for name in re.findall(r"(?:is_|import |from |odule '|named ')(\w+?)(?:_available)?\b", said):
        path = os.path.join(sys.path[0], name)
        if name != "harness" and path in str(PathFinder.find_spec(name)):
            return f"{path}: is taken for a package; rename it"
    return None


def how_to_install(error: Exception) -> str | None:
    """What to do where a package is missing; None where it is something else that is wrong."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    root = Path(__file__).resolve().parents[1]
    remedy = f"{root}/.venv/bin/python has it after `make demo`, or pip install -r {root}/requirements.txt"
    return f"{error.name}: is not installed for {sys.executable}; {remedy}"


def _say(line: str, status: int) -> int:
    """Print how this process ends; where harness.tools.launch has started it, leave that to it."""
    if launched():
        write_end(line, status)
    elif line:
        print(line, file=sys.stderr)
    return status


def be_silent() -> None:
    """For all processes of a run but the first: its plan, bars and warnings are enough."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  it stays open
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def go_offline_without_network() -> None:
    """Set HF_HUB_OFFLINE where the Hub's name does not resolve: upstream would retry for half a minute per file.

    To be called before huggingface_hub is imported, which reads it then.
    """
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    if "HF_HUB_OFFLINE" in os.environ or getproxies():  # a proxy resolves names for us
        return
    try:
        socket.getaddrinfo(endpoint, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
