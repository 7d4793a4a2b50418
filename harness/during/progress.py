"""Progress: the bar with its time left, and one readable line per log instead of a dict of thirty keys."""

from transformers import ProgressCallback, TrainerState

from harness.before.plan import Plan
from harness.errors import counted
from harness.reward import reward_means, score_words


class Progress(ProgressCallback):
    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is None:  # of several processes the first has it
            return
        if state.global_step:
            step = state.global_step
            self.training_bar.initial = self.training_bar.n = self.current_step = step
            self.training_bar.write(f"resumed from checkpoint-{step}, step {step} of {state.max_steps}")
        kl = "no KL, as beta is 0"
        if args.beta:
            kl = "KL: how far the policy is from the untrained one; it may rise slowly"
        cut = f"how many were truncated at {args.max_completion_length} tokens"
        every = counted(state.logging_steps, "step")
        self.training_bar.write(f"Below, a line every {every}: mean rewards | length, {cut} | {kl}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and ("reward" in logs or "eval_reward" in logs):
            self.training_bar.write(log_line(state, logs, self.plan.completions_a_step))

    def on_prediction_step(self, args, state, control, **kwargs):
        """No second bar for an evaluation."""


def log_line(state: TrainerState, logs: dict[str, float], completions_a_step: int) -> str:
    """`step 40/150  reward 3.61  emoji 1.85 | 14 tokens, 26 characters, 0% truncated | KL 0.41 | 4,900 tokens/s`"""
    step = f"step {state.global_step}/{state.max_steps}"
    evaluated = "eval_reward" in logs
    if evaluated:
        step += "  evaluation"
        logs = {key.removeprefix("eval_"): value for key, value in logs.items()}
    scores = score_words({"reward": logs["reward"]} | reward_means(logs), between="  ")
    tokens = logs["completions/mean_length"]
    length = f"{tokens:.0f} tokens"
    if "completions/mean_characters" in logs:
        length += f", {logs['completions/mean_characters']:.0f} characters"
    cut = f"{logs['completions/clipped_ratio']:.0%} truncated"
    kl = "no KL" if logs.get("kl") is None else f"KL {logs['kl']:.3g}"
    line = f"{step}  {scores} | {length}, {cut} | {kl}"
    if evaluated:
        return line
    speed = tokens * completions_a_step / logs["step_time"]
    return f"{line} | {speed:,.0f} tokens/s"
