"""Time and memory of train_grpo.py compared with TRL alone: python benchmarks/overhead.py

The demo's job (on all its questions), with the same settings and seed, by benchmarks/plain_trl.py and by train_grpo.py.
Each run is a process of its own, and the two take turns. All that this project adds counts: checks, report, pictures,
samples before and after. One more run puts TRL's padding back: all its losses have to equal those of TRL alone. Without
padding the losses agree up to rounding, until rounding changes a sampled token. The script prints the last step up to
which they agree, and fails where that is before step 10. Needs the model that `make demo` builds.

python benchmarks/overhead.py --against ../before     # another checkout of this repository in place of TRL alone
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
WITH_PADDING = """
import trl, harness.during.trainer, train_grpo
harness.during.trainer.Trainer._get_per_token_logps_and_entropies = trl.GRPOTrainer._get_per_token_logps_and_entropies
train_grpo.main()
"""


def one_run(command: list[str], steps: int) -> dict[str, float]:
    """Seconds in all, to the end of the first step and a step after it, and the peak memory in MB."""
    begin, first, last, seen = time.monotonic(), 0.0, 0.0, b""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0)
    while chunk := process.stderr.read(4096):  # the progress bar: 17/150 [00:05<...
        seen = (seen + chunk)[-8192:]
        if done := re.findall(rb" (\d+)/%d \[" % steps, seen):
            step, now = int(done[-1]), time.monotonic()
            first, last = (first or (now if step else 0.0)), (now if step == steps and not last else last)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, seen.decode()
    total = time.monotonic() - begin
    return {
        "total, s": total,
        "to the first step, s": first - begin,
        "a step, s": (last - first) / (steps - 1),
        "peak memory, MB": usage.ru_maxrss / 1024,
    }


def losses(folder: str) -> dict[int, float]:
    history = json.loads(Path(folder, "trainer_state.json").read_text())["log_history"]
    return {log["step"]: log["loss"] for log in history if "loss" in log}


def commands(folder: str, steps: int, against: Path | None) -> dict[str, list[str]]:
    ours = ["--config", "demo/config.yaml", "--training.max_steps", str(steps), "--samples.held_out", "0"]
    plain = [sys.executable, "benchmarks/plain_trl.py", f"{folder}/plain", str(steps)]
    before = [sys.executable, f"{against}/train_grpo.py", *ours, "--training.output_dir", f"{folder}/plain"]
    return {
        "plain": before if against else plain,
        "ours": [sys.executable, "train_grpo.py", *ours, "--training.output_dir", f"{folder}/ours"],
        "padded": [sys.executable, "-c", WITH_PADDING, *ours, "--training.output_dir", f"{folder}/padded"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="a checkout to take the place of TRL alone")
    options = parser.parse_args()
    pairs = []
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory() as folder:
            runs = commands(folder, options.steps, options.against)
            order = ["plain", "ours"][:: -1 if pair % 2 else 1]
            pairs.append({name: one_run(runs[name], options.steps) for name in order})
            plain, ours = losses(f"{folder}/plain"), losses(f"{folder}/ours")
            same = min((step for step in plain if abs(plain[step] - ours[step]) > 1e-4), default=options.steps + 1) - 1
            assert same >= 10, f"losses differ from step {same + 1} on"
            if pair == 0 and not options.against:
                one_run(runs["padded"], options.steps)
                assert losses(f"{folder}/padded") == plain, "with TRL's padding the losses have to be identical"
                print(f"with TRL's padding all {len(plain)} losses are identical", flush=True)
            print(f"pair {pair + 1}: losses agree to 1e-4 up to step {same}; {pairs[-1]}", flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "trl"))
    print(
        f"\n{platform.machine()}, {os.cpu_count()} cores; {versions}; {options.pairs} pairs of {options.steps} steps\n"
    )
    print(f"| | {options.against or 'plain TRL'} | train_grpo.py | ratio, median (range) |\n|---|---|---|---|")
    for key in pairs[0]["ours"]:
        ratios = [pair["ours"][key] / pair["plain"][key] for pair in pairs]
        cells = [f"{statistics.median(pair[name][key] for pair in pairs):.4g}" for name in ("plain", "ours")]
        print(
            f"| {key} | {' | '.join(cells)} | {statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    main()
