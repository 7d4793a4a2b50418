"""What this project costs over TRL by hand, in whole processes that take turns: python benchmarks/overhead.py

The demo's job (on all its questions), with the same settings and seed, by benchmarks/plain_trl.py and by train_grpo.py.
The losses have to agree. All of ours counts: checks, guards, report, pictures, samples before and after. It needs the
model that `make demo` builds.
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


def one_run(command: list[str], steps: int) -> dict[str, float]:
    """Seconds in all, to the end of the first step and a step after it, and the peak memory in MB."""
    begin, first, last, seen = time.monotonic(), 0.0, 0.0, b""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0)
    while chunk := process.stderr.read(4096):  # the progress bar: 17/290 [00:05<...
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


def losses(folder: str) -> list[float]:
    history = json.loads(Path(folder, "trainer_state.json").read_text())["log_history"]
    return [log["loss"] for log in history if "loss" in log]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=290)
    options = parser.parse_args()
    steps = str(options.steps)
    pairs = []
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory() as folder:
            runs = {
                "plain": [sys.executable, "benchmarks/plain_trl.py", f"{folder}/plain", steps],
                "ours": [sys.executable, "train_grpo.py", "--config", "demo/config.yaml", "--training.max_steps", steps]
                + ["--samples.held_out", "0", "--training.output_dir", f"{folder}/ours"],
            }
            order = [*runs][:: -1 if pair % 2 else 1]
            pairs.append({name: one_run(runs[name], options.steps) for name in order})
            plain, ours = losses(f"{folder}/plain"), losses(f"{folder}/ours")
            apart = max(abs(a - b) for a, b in zip(plain, ours, strict=True))
            assert apart < 1e-4, f"losses differ by up to {apart:.2g}"
            print(f"pair {pair + 1}: {len(ours)} losses agree to {apart:.1g}; {pairs[-1]}", flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "trl"))
    print(f"\n{platform.machine()}, {os.cpu_count()} cores; {versions}; {options.pairs} pairs of {steps} steps\n")
    print("| | plain TRL | train_grpo.py | ratio, median (range) |\n|---|---|---|---|")
    for key in pairs[0]["ours"]:
        ratios = [pair["ours"][key] / pair["plain"][key] for pair in pairs]
        cells = [f"{statistics.median(pair[name][key] for pair in pairs):.3g}" for name in ("plain", "ours")]
        print(
            f"| {key} | {' | '.join(cells)} | {statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    main()
