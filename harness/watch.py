"""Watch: says in words, once per cause and with the step, when a run is going wrong; stops what can't be a run."""

import statistics

import torch
from transformers import TrainerCallback

from harness.exits import RunError

FLAT = 1e-3  # a spread of rewards in a group below this is noise that group scaling blows up to full advantages


class Watch(TrainerCallback):
    """Looks at every log, and at the weights before and after; `warnings` goes into the report.

    Args:
        trainer: the GRPOTrainer, for the rewards of its latest generation batch.
        weights: weight by metric name; one of weight 0 is a canary: it is watched, not trained on.
    """

    def __init__(self, trainer, weights: dict[str, float]):
        self.trainer, self.weights = trainer, weights
        self.warnings: list[str] = []
        self.seen: set[str] = set()
        self.first: dict[str, float] = {}
        self.before = self._fingerprint()
        self.failure: str | None = None  # what keeps the run from counting as done

    def warn(self, cause: str, message: str) -> None:
        if cause not in self.seen:
            self.seen.add(cause)
            self.warnings.append(f"step {self.trainer.state.global_step}: {message}")
            if self.trainer.is_world_process_zero():
                print(f"warning: {self.warnings[-1]}", flush=True)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" not in logs:
            return
        self._watch_groups(args.num_generations)
        if logs.get("completions/clipped_ratio", 0) > 0.9:
            self.warn(
                "cut", "over 90% of completions are cut off at max_completion_length; raise it, or reward brevity"
            )
        if (logs.get("kl") or 0) > 10:
            self.warn("kl", f"KL is {logs['kl']:.1f} a token: the policy runs away; lower learning_rate or raise beta")
        for name, weight in self.weights.items():
            mean = logs.get(f"rewards/{name}/mean")
            if weight or mean is None:
                continue
            first = self.first.setdefault(name, mean)
            if first > 0 and mean < first / 2:
                self.warn(
                    name,
                    f"{name}, of weight 0, fell from {first:.2f} to {mean:.2f}: it is being traded for reward",
                )

    def on_step_end(self, args, state, control, **kwargs):
        now = next(p for p in self.trainer.model.parameters() if p.requires_grad).dtype
        if now != (before := self.before[0].dtype):
            raise RunError(
                f"step {state.global_step}: the trained weights have turned from {before} to {now} under way, as "
                "training.use_transformers_continuous_batching does with bf16; leave it off, or set bf16: false"
            )

    def on_train_end(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.failure = "no optimizer step was taken: the model is untrained"
        elif all(torch.equal(old, new) for old, new in zip(self.before, self._fingerprint(), strict=True)):
            self.failure = "the weights have not changed: nothing was learned; see learning_rate and model.dtype"
        if self.failure:
            self.warn("failure", self.failure)

    def _watch_groups(self, size: int) -> None:
        """The rewards of the latest generation batch, group by group: where nothing differs, nothing is learned."""
        rewards = {name: list(values) for name, values in self.trainer._logs["rewards"].items()}
        spreads = {}
        for name, values in rewards.items():
            groups = [values[i : i + size] for i in range(0, len(values) - size + 1, size)]
            spreads[name] = [max(group) - min(group) for group in groups]
        trained = [spread for name, spread in spreads.items() if self.weights[name]]
        without = (
            statistics.mean(max(group) < FLAT for group in zip(*trained, strict=True)) if trained and trained[0] else 0
        )
        if without > 0.5:
            flat = [
                name
                for name, spread in spreads.items()
                if self.weights[name] and statistics.mean(s < FLAT for s in spread) > 0.5
            ]
            self.warn(
                "groups",
                f"{without:.0%} of groups carry no signal (all completions score alike); flat: {', '.join(flat)}",
            )

    def _fingerprint(self) -> list[torch.Tensor]:
        """Up to 4,096 values of each trained weight."""
        trained = [p for p in self.trainer.model.parameters() if p.requires_grad]
        return [p.detach().flatten()[:: max(1, p.numel() // 4096)].cpu().clone() for p in trained]
