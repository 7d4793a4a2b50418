"""Watch: warns, once per cause, when a run is going wrong; a run in which nothing can be learned fails."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from harness.before.check import GUARDED
from harness.during.trainer import gathered
from harness.during.windows import ENOUGH, fall, grows, window
from harness.errors import RunError
from harness.reward import FLAT, HUGE, Reward

CANARY_FALL = 0.05  # more than that since the first evaluation is a fall
GIVEN_UP, TOTAL_FALL = 1 / 4, 1 / 10  # of what a canary, and the total reward, began with
# KL, nats a token, in how many logs in a row of how many questions. The demo learns well at 1, and an unlikely token
# makes a log of 2 questions 5, or two of 8 questions 2.1.
RUNAWAY = ((2, 2, ENOUGH[0]), (3, 3, 0))
SAMPLER = "sampling/sampling_logp_difference/mean"  # nats a token; TRL logs it where vLLM samples


class Watch(TrainerCallback, ExportableState):
    """Looks at every log, and at the weights before and after; its `warnings` go into the report.

    A reward of weight 0, logged but not trained on, is a canary: where it falls, the policy gives up what it measures
    to win the others. A warning that compares waits for enough questions (windows.py).
    """

    def __init__(self, rewards: list[Reward], model: torch.nn.Module):
        self.trained = [reward.logged for reward in rewards if reward.weight]
        self.canaries = [reward.logged for reward in rewards if not reward.weight]
        self.warnings: dict[str, str] = {}  # by cause
        self.first: dict[str, float] = {}  # what an evaluation said when it was first seen
        self.logs: list[dict[str, Any]] = []  # those of training, each with its `step` and its number of `questions`
        self.varied: set[str] = set()  # the rewards that have ever differed within a group
        self.before = _some_weights(model)  # the untrained policy's: no checkpoint has been loaded yet
        self.failure: str | None = None  # why the run does not count as done

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know of its first part; upstream keeps it in trainer_state.json."""
        return {"args": {}, "attributes": {name: getattr(self, name) for name in ("warnings", "first")}}

    def on_train_begin(self, args, state, control, **kwargs):
        vars(self).update(state.stateful_callbacks.get("Watch", self.state())["attributes"])
        self.logs, self.varied = [], set()
        for log in state.log_history:
            self._take(args, log["step"], log)

    def warn(self, state: TrainerState, cause: str, message: str) -> None:
        if cause not in self.warnings:
            self.warnings[cause] = f"step {state.global_step}: {message}"
            if state.is_world_process_zero:
                tqdm.write(f"warning: {self.warnings[cause]}")  # on a line of its own, above the progress bar

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not self._take(args, state.global_step, logs):
            return
        if self._last(3, 0, lambda log: all(log.get(f"rewards/{name}/mean") is None for name in self.trained)):
            problem = "None for every completion, three logs in a row; fix it in rewards.py"
            raise RunError(f"{', '.join(self.trained)}: {problem}")
        for cause, message in self._looks_wrong(args.generation_batch_size / args.num_generations):
            self.warn(state, cause, message)

    def _take(self, args: TrainingArguments, step: int, log: dict[str, float]) -> bool:
        """Keep a log of training; whether it is one."""
        if "reward" not in log:
            return False
        steps = step - (self.logs[-1]["step"] if self.logs else 0)
        sampled = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        questions = steps * sampled / args.num_iterations / args.num_generations
        self.logs.append(log | {"step": step, "questions": questions})
        for name in set(self.trained) - self.varied:
            same = (log.get(f"rewards/{name}/std") or 0) < FLAT
            if log.get(f"rewards/{name}/flat_groups", float(same)) < 1:
                self.varied.add(name)
                self.warnings.pop(f"flat/{name}", None)  # it was true so far
        return True

    def _looks_wrong(self, batch: float) -> Iterator[tuple[str, str]]:
        """(cause, message) of each; `batch`: how many questions are sampled at once."""
        logs, latest, backwards = self.logs, self.logs[-1], self.logs[::-1]
        applies = [name for name in self.trained if latest.get(f"rewards/{name}/mean") is not None]
        keys = {name: f"rewards/{name}/flat_groups" for name in applies}
        for questions in ENOUGH:
            # A group in which all completions score alike teaches nothing. TRL's share is of the weighted sum.
            flat = {
                name: window(backwards, key if key in latest else "frac_reward_zero_std", questions)
                for name, key in keys.items()
            }
            if flat and all(share and share.most() for share in flat.values()):
                shares = ", ".join(f"{name} in {share.mean:.0%} of them" for name, share in flat.items())
                yield "groups", f"most groups carry no signal, as all completions score alike: {shares}"
            if (cut := window(backwards, "completions/clipped_ratio", questions)) and cut.most():
                problem = f"{cut.mean:.0%} of completions are cut off at max_completion_length"
                yield "cut", f"{problem}; raise it, or reward brevity"
        if any(self._last(*many, lambda log, bound=bound: (log.get("kl") or 0) > bound) for bound, *many in RUNAWAY):
            yield "kl", f"KL is {latest['kl']:.1f} a token: the policy runs away; lower learning_rate or raise beta"
        if fell := fall(logs, "reward", TOTAL_FALL, batch):
            yield "reward", f"the total reward fell {fell}, below where it began; lower learning_rate or raise beta"
        began = window(logs, "entropy", ENOUGH[0])
        if began and self._last(3, 8, lambda log: log.get("entropy") is not None and log["entropy"] < began.mean / 10):
            fell = f"entropy fell from {began.mean:.2f} to {latest['entropy']:.2g} a token"
            yield "entropy", f"{fell}: a group's answers become the same; raise temperature or beta"
        for name in self.canaries:
            if fell := fall(logs, f"rewards/{name}/mean", GIVEN_UP, batch):
                problem = f"{name}, of weight 0, fell {fell}"
                yield f"rewards/{name}", f"{problem}: the policy gives it up to win the other rewards"
        if self.varied and window(logs, "reward", 2 * ENOUGH[0]):
            for name in (name for name in self.trained if name not in self.varied):
                problem = f"{name} has not differed within any group so far, and teaches nothing"
                yield f"flat/{name}", f"{problem}; see what it returns for the completions"
        if SAMPLER in latest and len(logs) % 4 == 0:
            values = [log[SAMPLER] for log in logs if log.get(SAMPLER) is not None]
            if grows(values):
                largest = latest[SAMPLER.replace("mean", "max")]
                problem = "vLLM's and the policy's log-probabilities differ more from log to log, at first by"
                problem += f" {values[0]:.2g} a token and now by {values[-1]:.2g}, at most {largest:.2g}"
                yield "sampler", f"{problem}: the trained weights may not reach vLLM; see vllm_mode and vLLM's version"

    def _last(self, times: int, questions: float, holds: Callable[[dict[str, Any]], bool]) -> bool:
        """Whether it holds for each of the last logs: of so many, and of more where these have fewer questions."""
        seen = held = 0
        for log in reversed(self.logs):
            if not holds(log):
                return False
            seen, held = seen + 1, held + log["questions"]
            if seen >= times and held >= questions:
                return True
        return False

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
        if state.is_world_process_zero and (seen := sum(log["questions"] for log in self.logs)) < 2 * ENOUGH[0]:
            tqdm.write(f"note: {seen:g} questions were sampled, too few to tell from the log whether a reward fell")


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
