"""Checkpoints: one is valid only with its manifest, which is written last; --resume uses the newest valid one.

TRL and transformers write and read them; but they write in place, take the highest number for the newest, check
nothing, and start a fresh optimizer where its file is missing.
"""

import hashlib
import itertools
import json
import logging
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import TrainerCallback, TrainingArguments

from harness.exits import (
    ENDS,
    RunError,
    Stopped,
    UserError,
    in_short,
    pending,
    rank,
    read_status,
    write_status,
    write_whole,
)
from harness.record import LONGER, settings_of_run
from harness.signals import STOPPING, end_at_once, take_signals
from harness.trainer import Trainer, total_norm

MANIFEST = "manifest.json"
DISK_FULL = ("No space left", "Disk quota", "unexpected pos", "PytorchStreamWriter")  # the last two are torch.save's
FP16_SKIPS = 20  # the loss scaler starts at 2**16 and halves at each skip: after 20 in a row it will not find a scale


class Checkpoints(TrainerCallback):
    """All that keeps a run resumable; one callback, so that the order of callbacks cannot break it.

    A step whose gradient is not finite is not taken. After one of SIGNALS the optimizer step is finished, a checkpoint
    saved, and Stopped raised; a second signal, seconds later, ends the process at once. Each checkpoint gets its
    manifest, hashed in the background; only then those over `save_total_limit` are deleted. A resumed run goes on
    where it was.
    """

    def __init__(self, trainer: Trainer, resumed_from: Path | None):
        self.trainer, self.resumed_from = trainer, resumed_from
        self.sealing = ThreadPoolExecutor(1)
        self.sealed: Future | None = None
        self.saved = 0  # the step of the newest checkpoint that is written whole
        self.skipped = 0
        self.uploads: list[Future] = []
        self.signal: int | None = None  # that has come to this process
        self.stopped_by = 0  # the signal after which all processes stop
        self.handlers: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.signal = pending[0] if pending else None
        self.handlers = take_signals(self._stop, end_at_once)
        # Upstream would delete older checkpoints before the new one is sealed.
        self.limit, args.save_total_limit = args.save_total_limit, None
        if self.resumed_from is None:
            return
        self.trainer.load_extras(self.resumed_from)
        if args.shuffle_dataset:
            batches = train_dataloader.batch_sampler
            sampler = getattr(batches, "batch_sampler", batches).sampler  # inside, where there are several processes
            for _ in range(int(state.epoch)):  # each epoch draws its order from the same generator
                torch.randperm(len(self.trainer.train_dataset), generator=sampler.generator)

    def _stop(self, number):
        self.signal = number
        if rank() == 0 and ENDS not in os.environ:  # harness.launch says it for all its processes
            os.write(2, STOPPING)  # not print(), which may be what the signal has interrupted

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        norm = total_norm(weight.grad for weight in model.parameters() if weight.grad is not None)
        self.skipped = 0 if norm.isfinite() else self.skipped + 1
        if self.skipped > (FP16_SKIPS if args.fp16 else 0):
            raise RunError(
                f"step {state.global_step + 1}: the gradient norm is {float(norm):g}; the step was not taken; go on "
                "with --resume, or start anew with a lower training.learning_rate"
            )

    def on_step_end(self, args, state, control, **kwargs):
        stop = torch.tensor(self.signal or 0, device=args.device)
        if args.world_size > 1:  # all processes have to stop after the same step
            torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
        if stop:
            self.stopped_by = int(stop)
            args.push_to_hub = False  # what is unfinished stays here
            control.should_save = control.should_training_stop = True
        control.should_log |= control.should_save  # else what is not logged yet would be lost on resume

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_status(args.output_dir, "running", step=state.global_step)

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save &= self.saved != state.global_step  # a stop in the epoch's last step has saved it

    def on_save(self, args, state, control, **kwargs):
        if not args.save_only_model:
            self.trainer.save_extras(_checkpoint(args.output_dir, state.global_step))
        args.distributed_state.wait_for_everyone()  # each process saves its own random state
        self.saved = state.global_step
        if state.is_world_process_zero:
            if self.sealed:
                self.sealed.result()
            self.sealed = self.sealing.submit(self._seal, args.output_dir, self.saved, state.best_model_checkpoint)
            self._report_lost_uploads()
        if self.signal and args.world_size == 1:  # it came while saving, so there is nothing more to finish
            self.stopped_by, control.should_training_stop = self.signal, True

    def _seal(self, output_dir: str, step: int, best: str | None) -> None:
        seal(_checkpoint(output_dir, step))
        for old in _numbered(output_dir)[: -self.limit] if self.limit else ():
            if best is None or old.name != Path(best).name:
                shutil.rmtree(old)

    def _report_lost_uploads(self) -> None:
        """An upload in mid-run goes on in the background; upstream says nothing of one that fails."""
        for job in getattr(self.trainer.push_in_progress, "jobs", []) if self.trainer.args.push_to_hub else ():
            if job not in self.uploads:
                self.uploads.append(job)
                job.add_done_callback(_report_lost_upload)

    def on_train_end(self, args, state, control, **kwargs):
        if self.sealed:
            self.sealed.result()
        args.distributed_state.wait_for_everyone()  # when one process has ended, its launcher ends the others
        if self.stopped_by:  # a signal that came after the last step stops nothing: the model is about to be saved
            on = "it holds the model only" if args.save_only_model else "the same command with --resume goes on"
            raise Stopped(self.stopped_by, f"checkpoint-{self.saved} is complete; {on}")

    @contextmanager
    def rescue(self) -> Iterator[None]:
        """To be put around training and saving: makes one line of a full disk, and puts the signals' handlers back."""
        if self.trainer.model.config.tie_word_embeddings:  # lm_head.weight is in no checkpoint, and nothing is wrong
            upstream = logging.getLogger("transformers.trainer")
            upstream.addFilter(lambda record: "['lm_head.weight']" not in record.getMessage())
        try:
            yield
        except Exception as error:
            if not any(words in str(error) for words in DISK_FULL):
                raise
            self._report_full_disk(error)
        finally:
            for number, handler in self.handlers.items():
                signal.signal(number, handler)

    def _report_full_disk(self, error: Exception) -> None:
        """One line for what torch or safetensors say; no half-written checkpoint stays."""
        trainer, folder = self.trainer, self.trainer.args.output_dir
        state = trainer.optimizer.state.values() if trainer.optimizer else ()
        tensors = [*trainer.model.parameters(), *(t for v in state for t in v.values() if torch.is_tensor(t))]
        needed, free = sum(tensor.nbytes for tensor in tensors), shutil.disk_usage(folder).free
        newest = _checkpoint(folder, trainer.state.global_step)
        if newest.name != f"checkpoint-{self.saved}" and not (newest / MANIFEST).exists():
            shutil.rmtree(newest, ignore_errors=True)
        raise RunError(
            f"{folder}: the disk is full: about {needed:,} bytes are needed, {free:,} are free; older checkpoints are "
            "intact; make room and go on with --resume"
        ) from error


def first_decides(args: TrainingArguments, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises (a UserError) on the first process, which alone calls it, on all of them."""
    outcome: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            outcome[0] = call()
        except UserError as error:
            outcome[1] = error
    if args.world_size > 1:
        torch.distributed.broadcast_object_list(outcome)
    if outcome[1]:
        raise outcome[1]
    return outcome[0]


@contextmanager
def sole_run(args: TrainingArguments) -> Iterator[None]:
    """Hold the lock of the output folder, which dies with the process; raises UserError where another run holds it."""
    folder = Path(args.output_dir)
    lock, holder = FileLock(folder / "_lock"), folder / "_lock_holder"  # what begins with _ is never uploaded

    def acquire():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError) as error:
            in_use = isinstance(error, Timeout)
            by = f"in use by another run ({holder.read_text()})" if in_use else f"not to be locked: {error}"
            raise UserError(f"training.output_dir: {folder} is {by}; wait for it, stop it, or choose another") from None
        holder.write_text(f"process {os.getpid()} on {platform.node()}")

    first_decides(args, acquire)
    try:
        yield
    finally:
        lock.release()


def resolve_resume(resume: bool | str, training: dict[str, Any]) -> bool | str:
    """What --resume comes to: `auto` is False where there is no checkpoint, and ends the program where all is done."""
    if resume != "auto":
        return resume
    output_dir = training["output_dir"]
    if read_status(output_dir).get("status") == "done":
        old = settings_of_run(Path(output_dir) / "config.yaml")
        if all((training.get(key.removeprefix("training.")) or 0) <= (old.get(key) or 0) for key in LONGER):
            print(f"{output_dir}: this run is done")
            sys.exit()
    return resume if _numbered(output_dir) else False


def seal(checkpoint: Path) -> None:
    """Write the manifest of `checkpoint`: the size and SHA-256 of every file."""
    files = {
        str(p.relative_to(checkpoint)): p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.name != MANIFEST
    }
    entries = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items()}
    write_whole(checkpoint / MANIFEST, json.dumps(entries, indent=1))


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


def newest_complete(output_dir: str, resume: bool | str = True) -> Path | None:
    """The newest checkpoint without a fault; newer ones that have one are named and set aside.

    Where there is none, raises UserError; with `auto` for `resume` returns None, and the run starts anew.
    """
    if not resume:
        return None
    checkpoints = _numbered(output_dir)
    for checkpoint in reversed(checkpoints):
        if (problem := fault(checkpoint)) is None:
            return checkpoint
        names = (checkpoint.with_name(f"_set-aside-{i}-{checkpoint.name}") for i in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        checkpoint.rename(aside)
        print(f"warning: {checkpoint.name} is not used: {problem}; set aside as {aside.name}", flush=True)
    if resume == "auto":
        return None
    if not checkpoints:
        raise UserError(f"--resume: the run in {output_dir} had saved no checkpoint yet; run it again without --resume")
    raise UserError(
        f"training.output_dir: {output_dir} has no complete checkpoint ({len(checkpoints)} tried) to resume from; "
        "start anew without --resume in another folder"
    )


def _numbered(output_dir: str) -> list[Path]:
    """The checkpoints, oldest first; a folder that the user has renamed is left alone."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _checkpoint(output_dir: str, step: int) -> Path:
    return Path(output_dir) / f"checkpoint-{step}"


def _report_lost_upload(job: Future) -> None:
    if error := job.exception():
        print(f"warning: an upload to the Hub failed ({in_short(error)}); the next one repeats it", flush=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
