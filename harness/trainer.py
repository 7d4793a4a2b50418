"""GRPOTrainer without the padding, and with what no callback can do; what it learns is TRL's.

These private names of upstream are used here and nowhere else; tests/test_upstream.py fails where one of them moves:
    _get_per_token_logps_and_entropies   scoring without padding has no public hook
    _step, _buffered_inputs              a checkpoint in the middle of a generation batch keeps what is left of it
    _init_training_state                 resumed from its last step, a run would take one step more
"""

from pathlib import Path

import torch
from trl import GRPOTrainer

from harness.exits import RunError, first_line
from harness.padding import by_length, positions_are_relative, without_padding


class Trainer(GRPOTrainer):
    def save_model(self, output_dir=None, _internal_call=False):
        """Every save begins here; raises RunError where the weights are not finite."""
        trained = [weight.detach() for weight in self.model.parameters() if weight.requires_grad]
        if not all(torch.stack([weight.isfinite().all() for weight in trained]).tolist()):
            raise RunError(
                f"step {self.state.global_step}: weights are no longer finite, and were not saved; start anew with "
                "a lower training.learning_rate"
            )
        super().save_model(output_dir, _internal_call)

    def create_model_card(self, *args, **kwargs):
        """Nothing: TRL's card, written at each save, shows neither rewards nor samples; Report writes ours."""

    def push_to_hub(self, *args, **kwargs):
        try:
            return super().push_to_hub(*args, **kwargs)
        except Exception as error:
            folder = self.args.output_dir
            raise RunError(
                f"the run is complete in {folder}, but not on the Hub ({first_line(error)}); upload it with: "
                f"hf upload {self.hub_model_id} {folder} --exclude 'checkpoint-*' --exclude '_*'"
            ) from error

    def save_generation_batch(self, checkpoint: Path) -> None:
        """Keep what is left of the generation batch beside a checkpoint, so that it is not sampled anew."""
        if self._step % (self.args.steps_per_generation * self.num_iterations):
            torch.save((self._step, self._buffered_inputs), self._generation_batch(checkpoint))

    def load_generation_batch(self, checkpoint: Path) -> None:
        if (file := self._generation_batch(checkpoint)).exists():
            self._step, self._buffered_inputs = torch.load(file, map_location=self.args.device, weights_only=True)

    def _generation_batch(self, checkpoint: Path) -> Path:
        return checkpoint / f"generation_batch_{self.args.process_index}.pt"

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **others
    ):
        score = super()._get_per_token_logps_and_entropies
        if any(value is not None and value is not False for value in others.values()):  # images, a router's loss
            return score(model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **others)
        rows = by_length(attention_mask, batch_size, split=self.accelerator.num_processes == 1)
        left = positions_are_relative(self.model.config)
        return without_padding(score, rows, model, input_ids, attention_mask, logits_to_keep, compute_entropy, left)

    def _init_training_state(self, max_steps, updates_per_epoch, epochs, *args):
        begin = super()._init_training_state(max_steps, updates_per_epoch, epochs, *args)
        return (epochs, 0) if self.state.global_step >= max_steps else begin
