"""End: the exit status of a program, and one line on stderr that says why.

0: done. 2: its settings, data or machine cannot work. 1: it failed on the way. 128 + N: stopped by signal N.
"""

import ctypes
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from urllib.parse import urlsplit
from urllib.request import getproxies

from harness.during.stop import end_children, stop
from harness.errors import RewardError, RunError, Stopped, UserError
from harness.processes import launched, rank, write_end


def exit_status(
    main: Callable[[], None],
    if_stopped: str = "outside of training; --resume goes on from the newest checkpoint, if there is one",
) -> int:
    """Run `main`, print what stopped it, if anything did, and return the exit status."""

    def stopped(number: int) -> None:
        raise Stopped(number, if_stopped)  # where Python swallows it (a weakref's callback), training sees stop.number

    stop.listen(stopped)
    if rank():
        _be_silent()
    if launched() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: stop, and save, where the launcher is killed
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL's, on what transformers 6 will rename
    for name in ("torchao", "torch.utils._pytree"):  # on CUDA kernels that are not there, and what torch will rename
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        try:
            main()
        finally:
            stop.listen(lambda number: None)  # Python is cleaning up; the exit status is known
            end_children()
    except UserError as error:
        return _say(f"error: {error}", 2)
    except (RunError, RewardError) as error:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", [])):  # or they would be drawn once more, below the error
            bar.close()
        return _say(f"error: {error}", 1)
    except Stopped as error:
        return _say(f"\nstopped by {signal.Signals(error.number).name}: {error}", 128 + error.number)
    except SystemExit as done:  # --help, --print_config, a run that is done already
        return _say("", done.code or 0)
    return _say("", 0)


def _say(line: str, status: int) -> int:
    """Print how this process ends; where harness.tools.launch has started it, leave that to it."""
    if launched():
        write_end(line, status)
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
