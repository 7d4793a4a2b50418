"""TRL's GRPOTrainer with the same losses; it computes them without padding, and saves and resumes exactly.

These private names of upstream's trainers are used here and nowhere else; tests/test_upstream.py fails where one moves:
    _get_per_token_logps_and_entropies   there is no public hook to leave out padding
    _step, _buffered_inputs              a checkpoint in the middle of a generation batch keeps what is left of it
    _calculate_rewards, _metrics         the best of each group is logged, as TRL logs the mean; placebos
    _logs                                the completions of a step, which an evaluation's would push out
    _generate_single_turn                sampling is compiled in training alone
    _init_training_state                 upstream takes one step too many when a run is resumed from its last step, and
                                         logs and saves as often as its checkpoint says, not its arguments
"""

import logging
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from shlex import quote

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch.distributed.tensor import DTensor
from trl import GRPOConfig, GRPOTrainer

from harness.before.policy import CheckpointingAsItWas
from harness.during.padding import by_length, positions_are_relative, without_padding
from harness.errors import RunError, in_short
from harness.processes import quiet
from harness.reward import Reward
from harness.rewards_file import parameters

REFERENCE = "reference_model.safetensors"


def total_norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The norm of weights or gradients, also of such as are divided over processes (by ZeRO-3: of this one's part)."""
    parts = [getattr(tensor, "ds_tensor", tensor) for tensor in tensors]
    norm = torch.nn.utils.get_total_norm(parts)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gathered(weight: torch.nn.Parameter) -> torch.Tensor:
    """All of a weight that FSDP2 or ZeRO-3 have divided over processes, each of which has to call this."""
    if hasattr(weight, "ds_tensor"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()
    if isinstance(weight, DTensor):
        return weight.detach().full_tensor()
    return weight.detach()


def keep_columns(rewards: list[Reward], columns: list[str]) -> None:
    """Have each of the data's columns that a reward takes written once beside its completion."""
    left = set(columns) - {"step", "prompt", "completion", "advantage"}
    left -= {reward.logged for reward in rewards}
    for reward in rewards:
        if reward.function is None:
            continue
        takes = parameters(reward.function)
        reward.kept = [name for name in takes if name in left and name not in reward.settings]
        left -= set(reward.kept)


def _not_of_none(record: logging.LogRecord) -> bool:
    """TRL shows the whole row at each step to which no reward applies; we log to how many each one does."""
    return "All reward functions returned None" not in record.getMessage()


class Trainer(GRPOTrainer):
    def __init__(self, rewards: list[Reward], args: GRPOConfig, placebo: bool = False, **others):
        self.placebo = placebo
        # Not when `args` are made: only the data tell which rewards there are.
        args.reward_weights = [reward.weight for reward in rewards]
        if args.log_completions:
            keep_columns(rewards, others["train_dataset"].column_names)
        functions = [reward.for_trl() for reward in rewards]
        tokenizers = [reward.tokenizer for reward in rewards]
        with quiet():  # the reference model's weights are the policy's, whose bar has been seen
            super().__init__(reward_funcs=functions, reward_processing_classes=tokenizers, args=args, **others)
        self.add_callback(CheckpointingAsItWas())
        logging.getLogger("trl.trainer.grpo_trainer").addFilter(_not_of_none)
        if args.num_completions_to_print is None:
            self.num_completions_to_print = 0  # TRL's default is all of them at each log
        for reward, function in zip(rewards, self.reward_funcs, strict=True):
            if reward.model is not None:  # on its device now, or divided over several
                reward.model = function

    def _generate_single_turn(self, *args):
        """Compiled with a static cache, but not in an evaluation: each other number of rows would be compiled anew."""
        if self.args.cache_implementation != "static":
            return super()._generate_single_turn(*args)
        self.generation_config.disable_compile = not self.model.training  # TRL disables what a static cache is for
        try:
            return super()._generate_single_turn(*args)
        except Exception as error:
            error.add_note("training.cache_implementation: null samples without compiling, also with --resume")
            raise

    def _calculate_rewards(self, *args, **kwargs):
        """(completions, rewards), of all processes; of a placebo each group's in another order, which teaches nothing.

        Also logs the mean of what the best of each group scores.
        """
        scores = super()._calculate_rewards(*args, **kwargs)
        weights = self.reward_weights.to(scores.device)
        totals = (scores * weights).nansum(dim=1)
        totals[scores.isnan().all(dim=1)] = -torch.inf  # no reward applies to them
        mode = "train" if self.model.training else "eval"
        group = self.num_generations if self.model.training else self.num_generations_eval
        best = totals.view(-1, group).amax(dim=1)
        self._metrics[mode]["reward_best_of_group"].append(best[best.isfinite()].mean().item())
        if self.placebo and self.model.training:
            self.own_scores = scores
            # Anew for each call; the same in every process, and in a run that is resumed.
            drawn = np.random.default_rng([self.args.seed, self.state.global_step, self.state.num_input_tokens_seen])
            rows = np.arange(len(scores)).reshape(-1, group)
            scores = scores[drawn.permuted(rows, axis=1).ravel()]
        return scores

    def log(self, logs, start_time=None):
        """An evaluation's completions do not take the place of the step's in TRL's files; without any there is none.

        A placebo's files have each completion's own scores, beside the advantage that it was trained with.
        """
        asked = self.log_completions
        self.log_completions = asked and self.model.training and bool(self._logs["prompt"])
        if self.log_completions and self.placebo:
            for i, name in enumerate(self.reward_func_names):
                self._logs["rewards"][name].extend(self.own_scores[:, i].tolist())  # the shuffled ones fall out
        super().log(logs, start_time)
        self.log_completions = asked

    def evaluate(self, *args, **kwargs):
        kept = deepcopy(self._logs)
        metrics = super().evaluate(*args, **kwargs)
        self._logs = kept
        return metrics

    def save_model(self, output_dir=None, _internal_call=False):
        """Every save begins here; raises RunError where the weights are not finite, or where no model was written."""
        norm = total_norm(weight for weight in self.model.parameters() if weight.requires_grad)
        if not norm.isfinite():
            raise RunError(
                f"step {self.state.global_step}: weights are no longer finite, and were not saved; start anew with "
                "a lower training.learning_rate"
            )
        final = output_dir is None
        if final and self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        super().save_model(output_dir, _internal_call)
        folder = Path(self.args.output_dir)
        if final and self.args.should_save and not any(folder.glob("*model*.safetensors")):
            raise RunError(f"{folder}: no model was written; set zero3_save_16bit_model: true and go on with --resume")

    def create_model_card(self, *args, **kwargs):
        """Nothing: TRL's card, written at each save, shows neither rewards nor samples; Report writes ours."""

    def push_to_hub(self, *args, **kwargs):
        try:
            return super().push_to_hub(*args, **kwargs)
        except Exception as error:
            folder = self.args.output_dir
            raise RunError(
                f"the run is complete in {folder}, but not on the Hub ({in_short(error)}); upload it with: "
                f"hf upload {self.hub_model_id} {quote(folder)} --exclude 'checkpoint-*' --exclude '_*'"
            ) from error

    def save_extras(self, checkpoint: Path) -> None:
        """What upstream leaves out of a checkpoint: the rest of the generation batch, and a reference that moves."""
        if self._step % (self.args.steps_per_generation * self.num_iterations):
            torch.save((self._step, self._buffered_inputs), self._generation_batch(checkpoint))
        if self.args.sync_ref_model and self.is_world_process_zero():
            save_model(self.accelerator.unwrap_model(self.ref_model), str(checkpoint / REFERENCE))

    def load_extras(self, checkpoint: Path) -> None:
        batch = self._generation_batch(checkpoint)
        if batch.exists():
            device = self.args.device.type  # without its number, as torch.load takes no cpu:0
            self._step, self._buffered_inputs = torch.load(batch, map_location=device, weights_only=True)
        if self.args.sync_ref_model:
            load_model(self.accelerator.unwrap_model(self.ref_model), str(checkpoint / REFERENCE))

    def _generation_batch(self, checkpoint: Path) -> Path:
        return checkpoint / f"generation_batch_{self.args.process_index}.pt"

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **others
    ):
        logps_of = super()._get_per_token_logps_and_entropies
        if any(value is not None and value is not False for value in others.values()):  # images, a router's loss
            return logps_of(model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **others)
        alone = self.accelerator.num_processes == 1
        groups = by_length(attention_mask, batch_size, split=alone)
        cut_left = positions_are_relative(self.model.config)
        return without_padding(
            logps_of, groups, model, input_ids, attention_mask, logits_to_keep, compute_entropy, cut_left
        )

    def _init_training_state(self, max_steps, updates_per_epoch, epochs, *args):
        begin = super()._init_training_state(max_steps, updates_per_epoch, epochs, *args)
        self.state.compute_steps(self.args, max_steps)
        return (epochs, 0) if self.state.global_step >= max_steps else begin
