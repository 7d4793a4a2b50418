"""Draw the zoo, and print what docs/zoo.md has of each run: its last line, and how it answers one question.

PYTHONPATH=. python demo/zoo/draw.py outputs/demo-hacked outputs/zoo/frog ... -> demo/zoo.png
"""

import sys

from matplotlib.figure import Figure

from harness.run_folder import RunFolder
from harness.tools.compare import verdict_of

# By the folder of the run: its name, what it is paid for, the most that it can be paid, its canary, what that asks.
ZOO = {
    "demo-hacked": ("The peacock", "emoji and 30 characters", 6, "answer_reward", "is the answer there?"),
    "frog": ("The frog", "120 characters", 1, "once_reward", "is nothing said twice?"),
    "owl": ("The owl", "figures", 1, "true_reward", "are they true?"),
    "fox": ("The fox", "saying “good question”", 1, "about_reward", "is its subject named?"),
}


def main(folders: list[str]) -> None:
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, run in zip(figure.subplots(1, len(folders), sharey=True), map(RunFolder, folders), strict=True):
        name, paid, most, canary, asks = ZOO[run.path.name]
        logs = [log for log in run.state()["log_history"] if "reward" in log]
        steps = [log["step"] for log in logs]
        axes.plot(steps, [log["reward"] / most for log in logs], "C0", linewidth=2.5)
        axes.plot(steps, [log[f"rewards/{canary}/mean"] for log in logs], "C1", linewidth=2.5)
        axes.set_title(name, fontsize=14, fontweight="bold", loc="left", pad=36)
        for height, line, color in ((1.12, f"paid for: {paid}", "C0"), (1.03, f"canary: {asks}", "C1")):
            axes.text(0, height, line, color=color, transform=axes.transAxes).set_in_layout(False)
        axes.set_xlabel("optimizer step")
        axes.set_ylim(0, 1.03)
        axes.grid(alpha=0.3)
        samples = [row for row in run.samples() if row["held_out"]]
        print(f"{name}: {verdict_of(run, samples)}")
        first = samples[0]
        print(f"    {first['question']} {first['before']['completion']} -> {first['after']['completion']}")
    figure.axes[0].set_ylabel("share of the most there is")
    figure.savefig("demo/zoo.png", dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
