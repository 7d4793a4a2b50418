"""Progress: the bar with its time left, and one readable line a log instead of a dict of thirty keys."""

from transformers import ProgressCallback

from harness.before.plan import Plan
from harness.reward import reward_means, score_words


class Progress(ProgressCallback):
    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if state.is_world_process_zero:
            kl = (
                "KL: how far the policy is from the untrained one; it may rise slowly"
                if args.beta
                else "no KL, as beta is 0"
            )
            cut = f"how many were cut off at {args.max_completion_length} tokens"
            self.training_bar.write(
                f"Below, a line each {state.logging_steps:g} steps: mean rewards | length, {cut} | {kl}"
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and {"reward", "eval_reward"} & set(logs):
            self.training_bar.write(log_line(state, logs, self.plan.completions_a_step))

    def on_prediction_step(self, args, state, control, **kwargs):
        """No second bar for an evaluation."""


def log_line(state, logs: dict[str, float], completions_a_step: int) -> str:
    """`step 40/150  reward 3.61  emoji 1.85 | 14 tokens, 26 characters, 0% cut off | KL 0.41 | 4,900 tokens/s`"""
    evaluation = "evaluation  " if "eval_reward" in logs else ""
    logs = {key.removeprefix("eval_"): value for key, value in logs.items()}
    scores = score_words(reward_means(logs), between="  ")
    length = f"{logs['completions/mean_length']:.0f} tokens"
    if "completions/mean_characters" in logs:
        length += f", {logs['completions/mean_characters']:.0f} characters"
    parts = [
        f"step {state.global_step}/{state.max_steps}  {evaluation}reward {logs['reward']:.2f}  {scores}",
        f"{length}, {logs['completions/clipped_ratio']:.0%} cut off",
        f"KL {logs['kl']:.3g}" if logs.get("kl") is not None else "no KL",
    ]
    if not evaluation:
        tokens = logs["completions/mean_length"] * completions_a_step
        parts.append(f"{tokens / logs['step_time']:,.0f} tokens/s")
    return " | ".join(parts)
