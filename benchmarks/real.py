"""Learning rates of the real model of `make real`: python benchmarks/real.py [--gpu]

Its own system prompt, then a shorter one, under which fewer answers have an emoji. One row per run of 50 steps; on two
cores each takes 20 to 30 minutes, on an H200 three, ten at once.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[1]
BFLOAT16 = ["--model.dtype=bfloat16", "--training.bf16=true"]
STOCHASTIC = ["--training.optim=adamw_torch_8bit", "--training.optim_args=bf16_stochastic_round=True"]
SHORTER = "--prompts.system=You answer with one short sentence and one emoji. Example: The sky is blue. 🌤️"
RUNS = {
    **{f"own, {rate}, 32": [f"--training.learning_rate={rate}"] for rate in ("5e-6", "1e-5", "2e-5")},
    **{
        f"shorter, {rate}, 32": [f"--training.learning_rate={rate}", SHORTER]
        for rate in ("1e-6", "5e-6", "1e-5", "2e-5", "6e-4")
    },
    "shorter, 1e-5, 64": ["--training.learning_rate=1e-5", SHORTER, "--training.gradient_accumulation_steps=8"],
    "shorter, 2e-5, 64": [SHORTER, "--training.gradient_accumulation_steps=8"],
    "shorter, 1e-5, 32, seed 1": ["--training.learning_rate=1e-5", SHORTER, "--training.seed=1"],
    "shorter, 2e-5, 32, seed 1": [SHORTER, "--training.seed=1"],
    "shorter, 1e-5, 32, no answer reward": [
        "--training.learning_rate=1e-5",
        SHORTER,
        "--rewards.answer_reward.weight=0",
    ],
    "shorter, 1e-5, 32, bfloat16": ["--training.learning_rate=1e-5", SHORTER, *BFLOAT16],
    "shorter, 1e-5, 32, bfloat16 rounded by chance": [
        "--training.learning_rate=1e-5",
        SHORTER,
        *BFLOAT16,
        *STOCHASTIC,
    ],
}


def row(name: str, folder: Path) -> str:
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n") if line]
    rows = [row for row in rows if row["held_out"]]
    scores = []
    for reward in ("emoji_reward", "length_reward", "answer_reward"):
        before, after = (mean(row[when]["rewards"][reward] for row in rows) for when in ("before", "after"))
        scores.append(f"{before:.2f} -> {after:.2f}")
    logs = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    kl = [log["kl"] for log in logs if "kl" in log]
    return f"| {name} | {' | '.join(scores)} | {max(kl):.2f}, {kl[-1]:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    gpu = ["--training.use_cpu=false"] if parser.parse_args().gpu else []
    print(
        "| system prompt, learning rate, completions per step | emoji | length | answer | highest and last KL |\n"
        "|---|---|---|---|---|"
    )
    for name, arguments in RUNS.items():
        folder = ROOT / "outputs/real-rates" / name.replace(", ", "-").replace(" ", "-")
        files = ["--config=recipes/cpu.yaml", "--config=demo/real/config.yaml"]
        command = [
            sys.executable,
            "train_grpo.py",
            *files,
            "--training.max_steps=50",
            *arguments,
            *gpu,
            f"--training.output_dir={folder}",
        ]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(row(name, folder), flush=True)


if __name__ == "__main__":
    main()
