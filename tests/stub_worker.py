"""Ends as a process of a training run may, but imports no torch: python tests/stub_worker.py FOLDER WHAT@RANK...

mistake, raises   a UserError, a RunError       killed      SIGKILL to itself
lost              a RunError because of another process that has ended, once its own launcher knows of that
waits             until a signal stops it, saves for a second, and says so; `hangs`, for two minutes
Each process begins with FOLDER/RANK, and ends a save with FOLDER/RANK.saved.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from harness.end import exit_status
from harness.errors import RunError, Stopped, UserError
from harness.processes import failed_elsewhere, rank


def main() -> None:
    folder = Path(sys.argv[1])
    what = next(word.split("@")[0] for word in sys.argv[2:] if word.partition("@")[2] in ("", str(rank())))
    try:
        (folder / str(rank())).write_text(str(os.getpid()))  # from here on a signal may come
        ends(folder, what)
    except Stopped as stopped:
        time.sleep(120 if what == "hangs" else 1)
        (folder / f"{rank()}.saved").touch()
        raise Stopped(stopped.number, "checkpoint-2 is complete") from None


def ends(folder: Path, what: str) -> None:
    while len(list(folder.glob("[01]"))) < 2:  # as processes wait for each other before the first step
        time.sleep(0.01)
    if what == "mistake":
        raise UserError("prompts.column: there is no qeury; did you mean query?")
    if what == "raises":
        raise RunError(f"poison in process {rank()}")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "lost":
        while not failed_elsewhere():
            time.sleep(0.01)
        raise RunError("connection closed by peer")
    time.sleep(120)


if __name__ == "__main__":
    sys.exit(exit_status(main))
