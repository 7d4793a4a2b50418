"""What chance alone does to the held-out answers: runs whose rewards are shuffled within each group, by seed.

python benchmarks/placebo.py outputs/placebos                     # the demo, seeds 1 to 10; 20 to 50 minutes
python benchmarks/placebo.py outputs/placebos-real --seeds 3 --config recipes/cpu.yaml demo/real/config.yaml

One run after another; a run that is done is not made again, so that the table can be printed from finished folders.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from harness.after.verdict import Verdict, verdict  # noqa: E402
from harness.run_folder import RunFolder  # noqa: E402
from harness.tools.compare import verdict_of  # noqa: E402


def train(folder: Path, seed: int, configs: list[str]) -> None:
    files = [part for config in configs for part in ("--config", config)]
    values = ["--training.seed", str(seed), "--training.output_dir", str(folder.absolute())]
    command = [sys.executable, "train_grpo.py", *files, *values, "--placebo", "--resume", "auto"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def moved(found: Verdict) -> bool:
    """Whether it says of a trained reward, or of the total, that it rose or fell."""
    return any(change.word in ("learned", "lost") for change in [*found.changes, found.total] if change.weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs are, or will be, in folders named by their seeds")
    parser.add_argument("--seeds", type=int, default=10, help="how many; default: 10")
    parser.add_argument("--config", nargs="+", default=["demo/config.yaml"])
    options = parser.parse_args()
    verdicts = []
    for seed in range(1, options.seeds + 1):
        run = RunFolder(options.folder / str(seed))
        if run.status().get("status") != "done":
            train(run.path, seed, options.config)
        samples = run.samples()
        verdicts.append(verdict(samples, run.weights()))
        print(f"seed {seed}: {verdict_of(run, samples)}", flush=True)
    print("\n| | mean change | its standard deviation between runs | rose or fell |\n|---|---|---|---|")
    for changes in zip(*([*found.changes, found.total] for found in verdicts), strict=True):
        means = [change.change.mean for change in changes]
        said = sum(change.word in ("learned", "lost") for change in changes)
        print(f"| {changes[0].name} | {np.mean(means):+.3f} | {np.std(means, ddof=1):.3f} | {said} of {len(means)} |")
    print(f"\nIn {sum(map(moved, verdicts))} of {len(verdicts)} runs the last line said that something rose or fell.")


if __name__ == "__main__":
    main()
