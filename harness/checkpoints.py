"""Checkpoints: one counts only with its manifest, which is written last; resuming takes the newest that still matches.

TRL and transformers write and read them; but they write in place, take the highest number for the newest, check
nothing, and start a fresh optimizer where its file is missing.
"""

import fcntl
import hashlib
import itertools
import json
import os
import platform
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback, TrainingArguments

from harness.exits import Stopped, UserError
from harness.settings import Settings

MANIFEST = "manifest.json"
# What may differ between a run and its continuation; everything else changes what is trained. Evaluation does, as it
# samples from the same random state.
FREE = (
    "logging_",
    "save_",
    "report_to",
    "run_name",
    "hub_",
    "push_to_hub",
    "log_",
    "disable_tqdm",
    "output_dir",
)


class Checkpoints(TrainerCallback):
    """Seals each checkpoint once saved, then deletes those over `save_total_limit`; SIGTERM and Ctrl-C stop the run.

    A stop finishes the optimizer step that it falls into, saves, and raises Stopped where training ends. A second
    signal ends the process at once. Hashing goes on beside the training.
    """

    def __init__(self, arguments: TrainingArguments):
        self.limit, arguments.save_total_limit = arguments.save_total_limit, None  # Trainer deletes before we can seal
        self.sealing = ThreadPoolExecutor(1)
        self.sealed = self.sealing.submit(lambda: None)
        self.signal: int | None = None
        self.newest = "no checkpoint"

    def on_train_begin(self, args, state, control, **kwargs):
        self.handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def _stop(self, number, frame):
        self.signal = number
        for number in self.handlers:
            signal.signal(number, signal.SIG_DFL)
        # Not print(), which may be what the signal has interrupted.
        os.write(2, b"\nstopping: this optimizer step is finished and saved first; once more stops at once\n")

    def on_step_end(self, args, state, control, **kwargs):
        stop = torch.tensor(self.signal or 0, device=args.device)
        if args.world_size > 1:  # all processes have to stop after the same step
            torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
        if stop:
            self.signal = int(stop)
            args.push_to_hub = False  # what is unfinished stays here
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        args.distributed_state.wait_for_everyone()  # each process saves its own random state
        self.newest = f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            self.sealed.result()
            self.sealed = self.sealing.submit(
                self._seal, args.output_dir, state.global_step, state.best_model_checkpoint
            )
        if self.signal and args.world_size == 1:  # it came while saving, so there is nothing more to finish
            control.should_training_stop = True

    def _seal(self, output_dir: str, step: int, best: str | None) -> None:
        seal(Path(output_dir) / f"checkpoint-{step}")
        if self.limit:
            for old in _numbered(output_dir)[: -self.limit]:
                if str(old) != best:
                    shutil.rmtree(old)

    def on_train_end(self, args, state, control, **kwargs):
        self.sealed.result()
        args.distributed_state.wait_for_everyone()  # a launcher ends all processes once one has ended
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.signal:
            on = "it holds the model only" if args.save_only_model else "the same command with --resume goes on"
            raise Stopped(self.signal, f"{self.newest} is complete; {on}")


@contextmanager
def sole_run(args: TrainingArguments) -> Iterator[None]:
    """Hold the lock of the output folder, which dies with the process; raises UserError where another run holds it."""
    if args.process_index:
        yield
        return
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "_lock").open("a+") as file:  # what begins with _ is never uploaded
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            problem = f"in use by another run ({file.read().strip()})"
            if not isinstance(error, BlockingIOError):
                problem = f"on a file system without locks ({error.strerror})"
            raise UserError(
                f"training.output_dir: {args.output_dir} is {problem}; choose another with --training.output_dir"
            ) from error
        file.truncate(0)
        print(f"process {os.getpid()} on {platform.node()}", file=file, flush=True)
        yield


def seal(checkpoint: Path) -> None:
    """Write the manifest of `checkpoint`: the size and SHA-256 of every file."""
    files = {
        str(p.relative_to(checkpoint)): p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.name != MANIFEST
    }
    entries = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items()}
    write_whole(checkpoint / MANIFEST, json.dumps(entries, indent=1))


def write_whole(path: Path, text: str) -> None:
    """Write `text` so that a kill or a full disk leaves the old file or the new one, and never half of one."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is as it was sealed."""
    try:
        entries = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        sealed = [(name, entry["bytes"], entry["sha256"]) for name, entry in entries.items()]
    except FileNotFoundError:
        return "it has no manifest: it was not finished"
    except (ValueError, AttributeError, TypeError, KeyError):
        return f"{MANIFEST} is damaged"
    for name, size, digest in sealed:
        path = checkpoint / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if _sha256(path) != digest:
            return f"{name} has changed since it was saved"
    if not any(name.startswith(("optimizer", "global_step")) for name in entries):  # DeepSpeed's is in global_step*
        return "it has no optimizer state (training.save_only_model)"
    return None


def newest_complete(output_dir: str) -> Path:
    """The newest checkpoint without a fault; newer ones that have one are named and set aside. Raises UserError."""
    checkpoints = _numbered(output_dir)
    for checkpoint in reversed(checkpoints):
        if (problem := fault(checkpoint)) is None:
            return checkpoint
        names = (checkpoint.with_name(f"_set-aside-{i}-{checkpoint.name}") for i in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        checkpoint.rename(aside)
        print(f"warning: {checkpoint.name} is not used: {problem}; set aside as {aside.name}", flush=True)
    if not checkpoints:
        raise UserError(f"--resume: the run in {output_dir} had saved no checkpoint yet; run it again without --resume")
    raise UserError(
        f"training.output_dir: {output_dir} has no complete checkpoint ({len(checkpoints)} tried) to resume from; "
        "start anew without --resume in another folder"
    )


def check_same_run(settings: Settings) -> None:
    """Refuse to continue a run with settings that change what is trained; raises UserError with old and new values."""
    path = Path(settings.training["output_dir"]) / "config.yaml"
    try:
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; there is no run to resume, leave --resume out") from error
    except (ValueError, yaml.YAMLError):
        old = None
    if not isinstance(old, dict):
        raise UserError(f"{path}: damaged; save there what --print_config prints with the run's settings, and --resume")
    old, new = _flat(old), _flat(settings.merged)
    differ = [key for key in sorted(old | new) if old.get(key) != new.get(key) and not _is_free(key)]
    if differ:
        changes = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in differ)
        raise UserError(f"--resume: other settings than the run's: {changes}; put them back, or start a new run")


def _is_free(key: str) -> bool:
    section, _, name = key.partition(".")
    return section == "samples" or (section == "training" and name.startswith(FREE))


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict) or not settings:
        return {prefix.removesuffix("."): settings}
    return {key: value for name, part in settings.items() for key, value in _flat(part, f"{prefix}{name}.").items()}


def _numbered(output_dir: str) -> list[Path]:
    """The checkpoints, oldest first; what somebody has renamed is theirs."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
