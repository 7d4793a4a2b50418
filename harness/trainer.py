"""GRPOTrainer with what keeps a run from being lost, and without the padding; what it learns is TRL's."""

import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from transformers import PreTrainedModel
from trl import GRPOTrainer

from harness.exits import RunError
from harness.padding import by_length, without_padding

FP16_SKIPS = 20  # the loss scaler starts at 2**16 and halves at each skip: after 20 in a row it has not found a scale


class Trainer(GRPOTrainer):
    """Stops before a step on a non-finite loss, tells a full disk, and resumes exactly where it was.

    A checkpoint in the middle of a generation batch carries the rest of that batch, which TRL would sample anew. One in
    a later epoch knows how often the prompts were shuffled, where TRL would begin with the first epoch's order again.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.args.logging_nan_inf_filter = self.args.fp16  # elsewhere it only hides what _get_grad_norm looks for
        self.skipped = 0
        self.saved: int | None = None
        if self.args.gradient_checkpointing:
            _hook_once(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        if self.args.cache_implementation == "static" and not self.use_vllm:
            self.generation_config.disable_compile = False  # TRL switches off what a static cache is for: CUDA graphs

    def _get_grad_norm(self, model, grad_norm=None):
        """The gradient norm before clipping; raises RunError, before the step, where it or the loss is not finite."""
        norm = super()._get_grad_norm(model, grad_norm)
        finite = torch.isfinite(torch.as_tensor(norm)) and torch.isfinite(self._tr_loss)
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped > (FP16_SKIPS if self.args.fp16 else 0):
            raise RunError(
                f"step {self.state.global_step + 1}: the loss is {float(self._tr_loss):g}, the gradient norm "
                f"{float(norm):g}; the step was not taken; start anew with a lower training.learning_rate"
            )
        return norm

    def _save_checkpoint(self, model, trial):
        step = self.state.global_step
        if step == self.saved:  # a stop where an epoch ends: upstream would save once more, over what is good
            return
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        if not all(torch.stack([weight.detach().isfinite().all() for weight in trained]).tolist()):
            raise RunError(
                f"step {step}: weights are no longer finite, and were not saved; start anew with a lower "
                "training.learning_rate"
            )
        checkpoint = Path(self._get_output_dir(trial)) / f"checkpoint-{step}"
        with self._told_when_full(checkpoint):
            super()._save_checkpoint(model, trial)
            if self._step % (self.args.steps_per_generation * self.num_iterations) and not self.args.save_only_model:
                torch.save((self._step, self._buffered_inputs), self._buffer(checkpoint))
        self.saved = step

    def save_model(self, output_dir=None, _internal_call=False):
        with self._told_when_full():
            super().save_model(output_dir, _internal_call)

    @contextmanager
    def _told_when_full(self, partial: Path | None = None) -> Iterator[None]:
        """One line in place of what torch or safetensors say when the disk is full; nothing stays of `partial`."""
        try:
            yield
        except RunError:
            raise
        except Exception as error:
            if partial:
                shutil.rmtree(partial, ignore_errors=True)
            state = [] if self.optimizer is None else self.optimizer.state.values()
            tensors = [
                *self.model.parameters(),
                *(t for values in state for t in values.values() if torch.is_tensor(t)),
            ]
            needed = sum(tensor.nbytes for tensor in tensors)
            free = shutil.disk_usage(self.args.output_dir).free
            words = " ".join(str(error).split())
            if "No space left" not in words and "Disk quota" not in words and free > needed:
                raise
            raise RunError(
                f"{self.args.output_dir}: the disk is full: about {needed:,} bytes are needed, {free:,} are free; "
                "older checkpoints are intact; make room and go on with --resume"
            ) from error

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **others
    ):
        score = super()._get_per_token_logps_and_entropies
        if any(value is not None and value is not False for value in others.values()):  # images, a router's loss
            return score(model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **others)
        chunks = by_length(attention_mask, batch_size, split=self.accelerator.num_processes == 1)
        return without_padding(score, chunks, model, input_ids, attention_mask, logits_to_keep, compute_entropy)

    def _get_train_sampler(self, dataset=None):
        self.sampler = super()._get_train_sampler(dataset)
        return self.sampler

    def _init_training_state(self, max_steps, updates_per_epoch, epochs, *args):
        begin = super()._init_training_state(max_steps, updates_per_epoch, epochs, *args)
        # Resumed at its very end, a run would take one more step.
        return (epochs, 0) if self.state.global_step >= max_steps else begin

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        for _ in range(int(self.state.epoch)):  # each epoch draws its order from the same generator
            torch.randperm(len(self.train_dataset), generator=self.sampler.generator)
        if (buffer := self._buffer(Path(checkpoint))).exists():
            device = self.accelerator.device
            self._step, self._buffered_inputs = torch.load(buffer, map_location=device, weights_only=True)

    def _buffer(self, checkpoint: Path) -> Path:
        return checkpoint / f"generation_batch_{self.args.process_index}.pt"

    def _push_from_checkpoint(self, checkpoint_folder):
        """An upload in mid-run, in the background; upstream says nothing of one that fails."""
        earlier = list(getattr(self.push_in_progress, "jobs", []))
        super()._push_from_checkpoint(checkpoint_folder)
        for job in getattr(self.push_in_progress, "jobs", []):
            if job not in earlier:
                job.add_done_callback(_tell_missed_upload)

    def push_to_hub(self, *args, **kwargs):
        try:
            return super().push_to_hub(*args, **kwargs)
        except Exception as error:
            folder = self.args.output_dir
            raise RunError(
                f"the run is complete in {folder}, but not on the Hub ({_first_line(error)}); upload it with: "
                f"hf upload {self.hub_model_id} {folder} --exclude 'checkpoint-*' --exclude '_*'"
            ) from error


def _hook_once(policy: PreTrainedModel) -> None:
    """TRL switches checkpointing off and on twice a step; upstream leaves one more hook on the embedding each time."""
    enable = policy.enable_input_require_grads
    policy.enable_input_require_grads = lambda: getattr(policy, "_require_grads_hooks", None) or enable()


def _tell_missed_upload(job: Future) -> None:
    if error := job.exception():
        print(f"warning: an upload to the Hub failed ({_first_line(error)}); the next one repeats it", flush=True)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:120]
