"""Watch: says once per cause, with the step, when a run is going wrong; ends what cannot count as a run."""

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from harness.exits import RunError


class Watch(TrainerCallback):
    """Looks at every log, and at the weights before and after; its `warnings` go into the report.

    Args:
        weights: weight by reward. A reward of weight 0, logged but not trained on, is a canary: where it falls, the
            policy gives up what it measures to win the others.
    """

    def __init__(self, weights: dict[str, float]):
        self.weights = weights
        self.warnings: list[str] = []
        self.seen: set[str] = set()
        self.first: dict[str, float] = {}
        self.before: list[torch.Tensor] = []
        self.unscored = 0  # logs in a row in which every trained reward was None for every completion
        self.failure: str | None = None  # why the run does not count as done

    def look_at_untrained(self, model: torch.nn.Module) -> None:
        """Remember some weights of the policy before its first step; to be called before a checkpoint is loaded."""
        self.before = _some_weights(model)

    def warn(self, cause: str, step: int, message: str, show: bool) -> None:
        if cause not in self.seen:
            self.seen.add(cause)
            self.warnings.append(f"step {step}: {message}")
            if show:
                tqdm.write(f"warning: {self.warnings[-1]}")  # on a line of its own, above the progress bar

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" not in logs:
            return
        trained = [name for name, weight in self.weights.items() if weight]
        scored = any(logs.get(f"rewards/{name}/mean") is not None for name in trained)
        self.unscored = 0 if scored else self.unscored + 1
        if self.unscored == 3:
            raise RunError(
                f"{', '.join(trained)}: None for every completion, three logs in a row; fix it in rewards.py"
            )
        for cause, message in self._looks_wrong(logs):
            self.warn(cause, state.global_step, message, state.is_world_process_zero)

    def _looks_wrong(self, logs: dict[str, float]) -> list[tuple[str, str]]:
        found = []
        # A group in which all completions score alike teaches nothing. TRL's share is of the weighted sum.
        flat = {
            name: logs.get(f"rewards/{name}/flat_groups", logs["frac_reward_zero_std"])
            for name, weight in self.weights.items()
            if weight
        }
        if min(flat.values()) > 0.5:
            shares = ", ".join(f"{name} in {share:.0%} of them" for name, share in flat.items())
            found.append(("groups", f"most groups carry no signal, as all completions score alike: {shares}"))
        if logs.get("completions/clipped_ratio", 0) > 0.9:
            found.append(
                ("cut", "over 90% of completions are cut off at max_completion_length; raise it, or reward brevity")
            )
        if (kl := logs.get("kl") or 0) > 10:
            found.append(("kl", f"KL is {kl:.1f} a token: the policy runs away; lower learning_rate or raise beta"))
        for name, weight in self.weights.items():
            mean = logs.get(f"rewards/{name}/mean")
            if weight or mean is None:
                continue
            first = self.first.setdefault(name, mean)
            if first > 0 and mean < first / 2:
                fell = f"{name}, of weight 0, fell from {first:.2f} to {mean:.2f}"
                found.append((name, f"{fell}: the policy gives it up to win the other rewards"))
        return found

    def on_step_end(self, args, state, control, model=None, **kwargs):
        now = next(p for p in model.parameters() if p.requires_grad).dtype
        if now != (before := self.before[0].dtype):
            raise RunError(
                f"step {state.global_step}: the trained weights have turned from {before} to {now}, as "
                "training.use_transformers_continuous_batching does with bf16; leave it off, or set bf16: false"
            )

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.failure = "no optimizer step was taken: the model is untrained"
        elif all(torch.equal(old, new) for old, new in zip(self.before, _some_weights(model), strict=True)):
            self.failure = "the weights have not changed: nothing was learned; see learning_rate and model.dtype"
        if self.failure:
            self.warn("failure", state.global_step, self.failure, state.is_world_process_zero)


def _some_weights(model: torch.nn.Module) -> list[torch.Tensor]:
    """Up to 4,096 values of each trained weight."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return [weight.detach().flatten()[:: max(1, weight.numel() // 4096)].cpu().clone() for weight in trained]
