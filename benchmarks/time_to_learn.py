"""Seconds until the demo has learned, as the article trains and as the demo does: python benchmarks/time_to_learn.py

Learned: every log of 20 steps shows an emoji_reward of at least 3.8 and an answer_reward of at least 0.9. Each run is a
process of its own, so imports and checks count; the kinds take turns. `article-like` is the demo with the article's
batches: 16 completions x 4 accumulation steps, gradient checkpointing, and TRL's padding; at the demo's learning rate,
and at half of it over 600 steps. `256 per generation call` samples 256 at once, for four optimizer steps, so
that most of them come from an older policy. Needs the model that `make demo` builds.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ARTICLE = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "gradient_checkpointing": "true"}
KINDS: dict[str, dict] = {
    "article-like, 3e-4": {**ARTICLE, "learning_rate": 3e-4, "max_steps": 600},
    "article-like": ARTICLE,
    "demo/config.yaml": {},
    "1e-3 over 100 steps": {"learning_rate": 1e-3, "max_steps": 100},
    **{f"{64 * n} per generation call": {"steps_per_generation": n} for n in (4, 8, 16)},
}


def train_until_learned(padding: bool, arguments: list[str]) -> None:
    """Run train_grpo.py in this process, and end it at the log that completes 20 good steps."""
    sys.path.insert(0, str(ROOT))
    from trl import GRPOTrainer

    import train_grpo
    from harness.during.progress import Progress
    from harness.during.trainer import Trainer

    if padding:
        Trainer._get_per_token_logps_and_entropies = GRPOTrainer._get_per_token_logps_and_entropies
    on_log, since = Progress.on_log, []

    def stops(self, args, state, control, logs=None, **kwargs):
        on_log(self, args, state, control, logs=logs, **kwargs)
        if "reward" in logs:
            good = logs["rewards/emoji_reward/mean"] >= 3.8 and logs["rewards/answer_reward/mean"] >= 0.9
            since[:] = [*since, state.global_step] if good else []
            if good and since[-1] - since[0] >= 15:  # four logs of five steps each
                print(f"learned at step {state.global_step}", flush=True)
                os._exit(0)

    Progress.on_log = stops
    train_grpo.main(arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="seeds 42, 43, ...")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS][:3])
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return train_until_learned(options.child[0] == "padding", options.child[1:])
    seconds: dict[str, list[float]] = {kind: [] for kind in options.kinds}
    for repeat in range(options.repeats):
        for kind in options.kinds:
            with tempfile.TemporaryDirectory() as folder:
                values = {**KINDS[kind], "seed": 42 + repeat, "output_dir": f"{folder}/run"}
                arguments = [part for key, value in values.items() for part in (f"--training.{key}", str(value))]
                padding = "padding" if ARTICLE.keys() <= KINDS[kind].keys() else "no padding"
                command = [sys.executable, __file__, "--child", padding, "--config", "demo/config.yaml", *arguments]
                begin = time.monotonic()
                run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                took = time.monotonic() - begin
                said = next((line for line in run.stdout.splitlines() if line.startswith("learned")), None)
                seconds[kind].append(took if said else float("inf"))
                print(f"{kind}, seed {42 + repeat}: {took:.0f} s, {said or 'NOT learned'}", flush=True)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores; median (range) of {options.repeats}\n")
    for kind, values in seconds.items():
        print(f"{kind}: {statistics.median(values):.0f} s ({min(values):.0f} – {max(values):.0f})")
    for kind in options.kinds[:-1]:
        ratios = [a / b for a, b in zip(seconds[options.kinds[-1]], seconds[kind], strict=True)]
        print(f"{options.kinds[-1]} / {kind}: {statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})")


if __name__ == "__main__":
    main()
