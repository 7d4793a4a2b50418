"""Watch: warns, once per cause, when a run is going wrong; a run in which nothing can be learned fails."""

from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from harness.before.check import GUARDED
from harness.during.trainer import gathered
from harness.errors import RunError
from harness.reward import HUGE, Reward

CANARY_FALL = 0.05  # more than that since the first evaluation is a fall


class Watch(TrainerCallback, ExportableState):
    """Looks at every log, and at the weights before and after; its `warnings` go into the report.

    A reward of weight 0, logged but not trained on, is a canary: where it falls, the policy gives up what it measures
    to win the others.
    """

    def __init__(self, rewards: list[Reward], model: torch.nn.Module):
        self.trained = [reward.logged for reward in rewards if reward.weight]
        self.canaries = [reward.logged for reward in rewards if not reward.weight]
        self.warnings: dict[str, str] = {}  # by cause
        self.first: dict[str, float] = {}  # what a log said when it was first seen
        self.lasting: dict[str, int] = {}  # by cause, for how many logs in a row it has been seen
        self.before = _some_weights(model)  # the untrained policy's: no checkpoint has been loaded yet
        self.failure: str | None = None  # why the run does not count as done

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know of its first part; upstream keeps it in trainer_state.json."""
        return {"args": {}, "attributes": {name: getattr(self, name) for name in ("warnings", "first", "lasting")}}

    def on_train_begin(self, args, state, control, **kwargs):
        vars(self).update(state.stateful_callbacks.get("Watch", self.state())["attributes"])

    def warn(self, state: TrainerState, cause: str, message: str) -> None:
        if cause not in self.warnings:
            self.warnings[cause] = f"step {state.global_step}: {message}"
            if state.is_world_process_zero:
                tqdm.write(f"warning: {self.warnings[cause]}")  # on a line of its own, above the progress bar

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" not in logs:
            return
        if self._lasts("unscored", all(logs.get(f"rewards/{name}/mean") is None for name in self.trained), times=3):
            problem = "None for every completion, three logs in a row; fix it in rewards.py"
            raise RunError(f"{', '.join(self.trained)}: {problem}")
        for cause, message in self._looks_wrong(logs):
            self.warn(state, cause, message)

    def _looks_wrong(self, logs: dict[str, float]) -> Iterator[tuple[str, str]]:
        """(cause, message) of each."""
        # A group in which all completions score alike teaches nothing. TRL's share is of the weighted sum.
        all_alike = logs["frac_reward_zero_std"]
        applies = [name for name in self.trained if logs.get(f"rewards/{name}/mean") is not None]
        flat = {name: logs.get(f"rewards/{name}/flat_groups", all_alike) for name in applies}
        if min(flat.values(), default=0) > 0.5:
            shares = ", ".join(f"{name} in {share:.0%} of them" for name, share in flat.items())
            yield "groups", f"most groups carry no signal, as all completions score alike: {shares}"
        if (cut := logs.get("completions/clipped_ratio", 0)) > 0.5:
            yield "cut", f"{cut:.0%} of completions are cut off at max_completion_length; raise it, or reward brevity"
        if self._lasts("kl", (kl := logs.get("kl") or 0) > 1) or kl > 10:
            yield "kl", f"KL is {kl:.1f} a token: the policy runs away; lower learning_rate or raise beta"
        reward, began = logs["reward"], self.first.setdefault("reward", logs["reward"])
        if self._lasts("reward", reward < began - abs(began) / 10):
            problem = f"the total reward, {reward:.2f}, has fallen below where it began, {began:.2f}"
            yield "reward", f"{problem}; lower learning_rate or raise beta"
        entropy = logs.get("entropy")
        if entropy is not None and entropy < self.first.setdefault("entropy", entropy) / 10:
            problem = f"entropy fell from {self.first['entropy']:.2f} to {entropy:.2g} nats a token"
            yield "entropy", f"{problem}: a group's answers become the same; raise temperature or beta"
        for name in self.canaries:
            if (mean := logs.get(f"rewards/{name}/mean")) is None:
                continue
            first = self.first.setdefault(f"rewards/{name}", mean)
            if first > 0 and mean < first / 2:
                fell = f"{name}, of weight 0, fell from {first:.2f} to {mean:.2f}"
                yield f"rewards/{name}", f"{fell}: the policy gives it up to win the other rewards"

    def _lasts(self, cause: str, seen: bool, times: int = 5) -> bool:
        self.lasting[cause] = self.lasting.get(cause, 0) + 1 if seen else 0
        return self.lasting[cause] == times

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Add the metric of recipes/best.yaml: the total reward; hugely negative where a canary has fallen."""
        keys = [f"eval_rewards/{name}/mean" for name in self.canaries]
        canaries = {key: metrics[key] for key in keys if metrics.get(key) is not None}  # None: it applied to no row
        fall = max((self.first.setdefault(key, mean) - mean for key, mean in canaries.items()), default=0)
        metrics[f"eval_{GUARDED}"] = metrics["eval_reward"] if fall <= CANARY_FALL else -HUGE * fall

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.failure = "no optimizer step was taken: the model is untrained"
        elif all(torch.equal(old.to(new), new) for old, new in zip(self.before, _some_weights(model), strict=True)):
            self.failure = "the weights have not changed: nothing was learned; see learning_rate and model.dtype"
        if self.failure:
            self.warn(state, "failure", self.failure)


def best_in_words(args: TrainingArguments, state: TrainerState) -> str:
    """Which checkpoint was loaded at the end, and by which figure; empty where none was asked for."""
    if not (args.load_best_model_at_end and state.best_model_checkpoint):
        return ""
    figure = f"the best {args.metric_for_best_model}: {state.best_metric:.2f}"
    if args.metric_for_best_model.endswith(GUARDED) and state.best_metric <= -HUGE * CANARY_FALL:
        figure = "the canaries have fallen at every evaluation, and there the least; evaluate more often"
    return f"as it was at step {state.best_global_step} ({figure})"


def _some_weights(model: torch.nn.Module) -> list[torch.Tensor]:
    """A sample of the values of each trained weight, 4,096 or more where it has them."""
    trained = (gathered(weight).flatten() for weight in model.parameters() if weight.requires_grad)
    return [values[:: max(1, len(values) // 4096)].cpu().clone() for values in trained]
