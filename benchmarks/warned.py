"""What the log of finished runs is warned of, by the rules of today: does a warning come in time, and none for chance?

python benchmarks/warned.py outputs/demo outputs/demo-hacked
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from harness.during.watch import Watch
from harness.reward import Reward
from harness.run_folder import RunFolder


def warnings(run: RunFolder) -> list[str]:
    """The warnings that stand at its end, each with the step at which it came."""
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
    for log in logs:
        state = SimpleNamespace(global_step=log["step"], is_world_process_zero=False)
        watch.on_log(None, state, None, logs=log)
    return list(watch.warnings.values())


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        found = warnings(RunFolder(folder))
        print(f"{folder}: {len(found)}", *found, sep="\n  ")
