"""Of finished runs: which warnings of today come for nothing, and which come before the held-out answers fall?

python benchmarks/warned.py outputs/demo outputs/demo-hacked

A run is sound where no reward fell on its held-out questions. When one fell is known where the run evaluated: at the
first evaluation that finds a reward, or the total, a quarter below what it began with (training.eval_on_start).
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from harness.after.verdict import verdict
from harness.during.watch import Watch
from harness.reward import Reward, given_up
from harness.run_folder import RunFolder


def warnings(run: RunFolder) -> dict[str, int]:
    """The step at which each came, by its cause."""
    training, logs = run.settings()["training"], run.state()["log_history"]
    weights = {name: weight for name, weight in run.weights().items() if any(f"rewards/{name}/mean" in x for x in logs)}
    accumulated = training.get("gradient_accumulation_steps", 1)  # upstream's defaults
    generations = training.get("num_generations", 8)
    completions = training["per_device_train_batch_size"] * run.run().get("processes", 1)
    plan = SimpleNamespace(
        rewards=[Reward(name, weight, {}, None) for name, weight in weights.items()],
        questions_a_step=completions * accumulated / generations / training.get("num_iterations", 1),
        prompts_a_batch=completions * (training.get("steps_per_generation") or accumulated) // generations,
    )
    watch = Watch(plan, torch.nn.Linear(1, 1))
    came: dict[str, int] = {}
    for log in logs:
        state = SimpleNamespace(global_step=log["step"], is_world_process_zero=False)
        watch.on_log(None, state, None, logs=log)
        came |= {cause: came.get(cause, log["step"]) for cause in watch.warnings}
    return came


def fell(run: RunFolder) -> dict[str, int]:
    """The evaluation at which each reward, and the total, had fallen; those of a run without any at its last step."""
    state = run.state()
    evaluations = [log for log in state["log_history"] if "eval_reward" in log]
    steps: dict[str, int] = {}
    for log in evaluations:
        for key, score in log.items():
            if key == "eval_reward" or (key.startswith("eval_rewards/") and key.endswith("/mean")):
                began = evaluations[0][key]
                if given_up(began, began - score):
                    steps.setdefault(key.removeprefix("eval_"), log["step"])
    if not evaluations:
        found = verdict(run.samples(), run.weights())
        steps = {change.name: state["global_step"] for change in [*found.changes, found.total] if change.word == "lost"}
    return steps


if __name__ == "__main__":
    alarms: dict[str, list[str]] = {}
    sound = 0
    for folder in sys.argv[1:]:
        run = RunFolder(folder)
        came, falls = warnings(run), fell(run)
        print(f"{folder}: {'fell' if falls else 'sound'} {falls or ''}; warned {came or 'of nothing'}")
        sound += not falls
        for cause, step in came.items():
            alarms.setdefault(cause, []).append(f"{min(falls.values()) - step:+d}" if falls else "false")
    print(f"\nFalse alarms in {sound} sound runs, and steps before the first fall in the others:")
    for cause, found in alarms.items():
        print(
            f"  {cause}: {found.count('false')} false; {', '.join(each for each in found if each != 'false') or 'none'}"
        )
