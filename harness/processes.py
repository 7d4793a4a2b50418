"""Processes: a run may have several; which of them this is, what one decides for all, and how each says that it ended.

`python -m harness launch` starts them, and reads how each one ended from a folder that ENDS names.
"""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import write_whole

ENDS = "TRAIN_GRPO_ENDS"  # environment variable: the folder where each process writes how it ended


def rank() -> int:
    return int(os.environ.get("RANK") or 0)


def size() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)


def launched() -> bool:
    """Whether harness.tools.launch has started this process; it then speaks for all of them."""
    return ENDS in os.environ


def write_end(line: str, status: int) -> None:
    end = {"time": time.time(), "line": line, "status": status}
    write_whole(Path(os.environ[ENDS], f"{rank()}.json"), json.dumps(end))


def read_ends(folder: str) -> dict[int, dict[str, Any]]:
    """By rank, what each process that has ended wrote: `time`, `line`, exit `status`."""
    return {int(path.stem): json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("*.json")}


def failed_elsewhere() -> bool:
    """Whether another process of this run has failed before; only harness.tools.launch lets its processes know."""
    return launched() and any(end["status"] in (1, 2) for end in read_ends(os.environ[ENDS]).values())


def first_decides(call: Callable[[], Any]) -> Any:
    """What `call` returns or raises (a UserError) on the first process, which alone calls it, on all of them."""
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = call()
        except UserError as error:
            outcome[1] = error
    if size() > 1:
        import torch.distributed  # not for the tools, which have no need of it

        torch.distributed.broadcast_object_list(outcome)
    if outcome[1]:
        raise outcome[1]
    return outcome[0]


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers', and no package says anything but errors."""
    from transformers.utils import logging as upstream  # here, as it takes seconds

    shown = upstream.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    upstream.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
        if shown:
            upstream.enable_progress_bar()
