"""Does the demo learn with bfloat16 weights? python benchmarks/low_bit.py (any machine, an hour and a half)

150 demo steps per run: float32 and bfloat16 weights with AdamW, and bfloat16 with torchao's 8-bit and 4-bit AdamW,
which rounds the weights up or down by chance. On a CPU without bfloat16 of its own its products are slow, so here they
are computed in float32 and rounded to bfloat16, as a GPU does.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BY_CHANCE = ["--model.dtype=bfloat16", "--training.optim_args=bf16_stochastic_round=True"]
KINDS = {
    "float32, AdamW": [],
    "bfloat16, AdamW": ["--model.dtype=bfloat16"],
    "bfloat16, 8-bit AdamW": [*BY_CHANCE, "--training.optim=adamw_torch_8bit"],
    "bfloat16, 4-bit AdamW": [*BY_CHANCE, "--training.optim=adamw_torch_4bit"],
}


def train() -> None:
    """train_grpo.py with the command line's arguments and quick bfloat16 products."""
    import torch
    import torch.nn.functional as F

    def quick(function):
        def call(first, *others, **more):
            others = [widened(value) for value in others]
            return function(widened(first), *others, **{k: widened(v) for k, v in more.items()}).to(first.dtype)

        return call

    def widened(value):
        return value.float() if torch.is_tensor(value) and value.dtype == torch.bfloat16 else value

    F.linear, F.scaled_dot_product_attention = quick(F.linear), quick(F.scaled_dot_product_attention)
    sys.path.insert(0, str(ROOT))
    import train_grpo

    train_grpo.main(sys.argv[2:])


def learned(kind: list[str], rate: str, seed: int) -> str:
    """`0.41 -> 1.54, 0.90`: emoji in the first five and the last 20 steps, and answers in the last 20."""
    with tempfile.TemporaryDirectory() as folder:
        values = {"learning_rate": rate, "seed": seed, "output_dir": folder, "save_strategy": "no"}
        arguments = ["--config", "demo/config.yaml", *kind, *(f"--training.{key}={v}" for key, v in values.items())]
        command = [sys.executable, __file__, "--run", *arguments]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        logs = json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]
    logs = [log for log in logs if "reward" in log]
    means = {
        name: statistics.mean(log[f"rewards/{name}/mean"] for log in logs if log["step"] > logs[-1]["step"] - 20)
        for name in ("emoji_reward", "answer_reward")
    }
    return f"{logs[0]['rewards/emoji_reward/mean']:.2f} -> {means['emoji_reward']:.2f}, {means['answer_reward']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 1, 2])
    parser.add_argument("--rates", nargs="+", default=["6e-5", "6e-4"])
    options = parser.parse_args()
    columns = [(rate, seed) for rate in options.rates for seed in options.seeds]
    print("| weights, optimizer |", " | ".join(f"{rate}, seed {seed}" for rate, seed in columns), "|")
    print("|---" * (len(columns) + 1) + "|")
    for name, kind in KINDS.items():
        print(f"| {name} |", " | ".join(learned(kind, rate, seed) for rate, seed in columns), "|", flush=True)


if __name__ == "__main__":
    train() if sys.argv[1:2] == ["--run"] else main()
