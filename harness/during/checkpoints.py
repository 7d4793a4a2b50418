"""Checkpoints: all that keeps a run resumable, in one callback, so that the order of callbacks cannot break it."""

import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from harness.during.stop import stop
from harness.during.trainer import Trainer, total_norm
from harness.errors import RunError, Stopped
from harness.files import MANIFEST, seal
from harness.run_folder import RunFolder

DISK_FULL = ("No space left", "Disk quota", "unexpected pos", "PytorchStreamWriter")  # the last two are torch.save's
FP16_SKIPS = 20  # the loss scaler starts at 2**16 and halves at each skip: after 20 in a row it will not find a scale


class Checkpoints(TrainerCallback):
    """Stops, saves and seals; a resumed run goes on where it was.

    A step whose gradient is not finite is not taken. What the optimizer draws in a step (torchao rounds by chance) is
    the same in each process, which samples by numbers of its own: or whole replicas of a model would drift apart. The
    parts of a divided model may be rounded by the same numbers too. After a signal the optimizer step is finished, a
    checkpoint saved, and Stopped raised. Each checkpoint gets its manifest, hashed in the background; only then those
    over `save_total_limit` are deleted.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, resumed_from: Path | None):
        self.trainer = trainer
        self.folder = folder
        self.resumed_from = resumed_from
        self.sealing = ThreadPoolExecutor(1)
        self.sealed: Future | None = None
        self.saved = 0  # the step of the newest checkpoint that is written whole
        self.skipped = 0
        self.stopped_by = 0  # the signal after which all processes stop
        self.held = False  # a save that waits for the evaluation at the epoch's end

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.limit = args.save_total_limit
        args.save_total_limit = None  # upstream would delete older checkpoints before the new one is sealed
        if self.resumed_from is None:
            return
        args.eval_on_start = False  # done before the stop
        self.trainer.load_extras(self.resumed_from)
        if args.shuffle_dataset:
            batches = train_dataloader.batch_sampler
            sampler = getattr(batches, "batch_sampler", batches).sampler  # inside, where there are several processes
            for _ in range(int(state.epoch)):  # each epoch draws its order from the same generator
                torch.randperm(len(self.trainer.train_dataset), generator=sampler.generator)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        norm = total_norm(weight.grad for weight in model.parameters() if weight.grad is not None)
        self.skipped = 0 if norm.isfinite() else self.skipped + 1
        allowed = FP16_SKIPS if args.fp16 else 0
        if self.skipped > allowed:
            raise RunError(
                f"step {state.global_step + 1}: the gradient norm is {float(norm):g}; the step was not taken; go on "
                "with --resume, or start anew with a lower training.learning_rate"
            )
        devices = [args.device] if args.device.type == "cuda" else []  # the CPU's numbers are put back anyway
        self.own_numbers = torch.random.fork_rng(devices)
        self.own_numbers.__enter__()
        torch.manual_seed(args.seed * 2**20 + state.global_step)  # a resumed run draws them too

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.own_numbers.__exit__(None, None, None)

    def on_step_end(self, args, state, control, **kwargs):
        signal = torch.tensor(stop.number or 0, device=args.device)
        if args.world_size > 1:  # all processes have to stop after the same step
            torch.distributed.all_reduce(signal, torch.distributed.ReduceOp.MAX)
        if signal:
            self.stopped_by = int(signal)
            args.push_to_hub = False  # what is unfinished stays here
            if args.save_strategy == SaveStrategy.BEST:  # upstream would save only where the evaluation is the best
                args.save_strategy = SaveStrategy.STEPS
            control.should_save = True
            control.should_training_stop = True
        if control.should_save:
            control.should_log = True  # else what is not logged yet would be lost on resume
        epoch_ends = abs(state.epoch - round(state.epoch)) < 1e-6
        if args.eval_strategy == IntervalStrategy.EPOCH and epoch_ends:
            # A checkpoint from before the evaluation would be resumed after it, with other random numbers.
            self.held = control.should_save
            control.should_save = False

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.folder.write_status("running", step=state.global_step)

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped_by and not self.held:  # in mid-epoch, where upstream comes here too
            control.should_evaluate = False
        save = control.should_save or self.held
        control.should_save = save and self.saved != state.global_step
        self.held = False

    def on_save(self, args, state, control, **kwargs):
        if not args.save_only_model:
            self.trainer.save_extras(self.folder.checkpoint(state.global_step))
        args.distributed_state.wait_for_everyone()  # each process saves its own random state
        self.saved = state.global_step
        if state.is_world_process_zero:
            self._wait_for_sealing()
            self.sealed = self.sealing.submit(self._seal, self.saved, state.best_model_checkpoint)
        if stop.number and args.world_size == 1:  # it came while saving, so there is nothing more to finish
            self.stopped_by = stop.number
            control.should_training_stop = True

    def _seal(self, step: int, best: str | None) -> None:
        seal(self.folder.checkpoint(step))
        if not self.limit:
            return
        for old in self.folder.checkpoints()[: -self.limit]:
            if best is None or old.name != Path(best).name:
                shutil.rmtree(old)

    def _wait_for_sealing(self) -> None:
        """Raises what was raised in it."""
        if self.sealed:
            self.sealed.result()

    def on_train_end(self, args, state, control, **kwargs):
        self._wait_for_sealing()
        args.distributed_state.wait_for_everyone()  # when one process has ended, its launcher ends the others
        if self.stopped_by:  # a signal that came after the last step stops nothing: the model is about to be saved
            on = "it holds the model only" if args.save_only_model else "the same command with --resume goes on"
            raise Stopped(self.stopped_by, f"checkpoint-{self.saved} is complete; {on}")

    @contextmanager
    def failed_save_reported(self) -> Iterator[None]:
        """To be put around training and saving: one line for a disk that is full."""
        if self.trainer.model.config.tie_word_embeddings:
            logging.getLogger("transformers.trainer").addFilter(_not_of_tied_weights)
        try:
            yield
        except Exception as error:
            if not any(words in str(error) for words in DISK_FULL):
                raise
            free = shutil.disk_usage(self.folder.path).free
            self._delete_half_a_checkpoint()
            raise RunError(
                f"{self.folder}: the disk is full, {free:,} bytes are free; older checkpoints are intact; make room "
                "and go on with --resume"
            ) from error

    def _delete_half_a_checkpoint(self) -> None:
        step = self.trainer.state.global_step
        newest = self.folder.checkpoint(step)
        if step != self.saved and not (newest / MANIFEST).exists():
            shutil.rmtree(newest, ignore_errors=True)  # what stays has no manifest, and is never resumed


def _not_of_tied_weights(record: logging.LogRecord) -> bool:
    """Upstream warns that lm_head.weight is in no checkpoint, where the embedding's weights are its own."""
    return "['lm_head.weight']" not in record.getMessage()
