"""Draw the zoo: of each run its reward, which rises, and its canary, which falls; and print one of its answers.

python demo/zoo/draw.py outputs/demo-hacked outputs/zoo/frog ... -> demo/zoo.png
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from harness.run_folder import RunFolder  # noqa: E402

# Of each run: its name, what is paid for, the most that can be had, the canary, and what the canary asks.
ZOO = {
    "demo-hacked": ("Peacock", "emoji, and 30 characters", 6, "answer_reward", "is the answer in it?"),
    "frog": ("Frog", "a long answer", 1, "once_reward", "is nothing said twice?"),
    "owl": ("Owl", "figures", 1, "true_reward", "are they true?"),
    "fox": ("Fox", "a kind word", 1, "about_reward", "does it speak of what was asked?"),
}


def main(folders: list[str]) -> None:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, folder in zip(figure.subplots(1, len(folders), sharey=True), folders, strict=True):
        run = RunFolder(folder)
        name, paid, most, canary, asks = ZOO[run.path.name]
        logs = [log for log in run.state()["log_history"] if "reward" in log]
        steps = [log["step"] for log in logs]
        axes.plot(steps, [log["reward"] / most for log in logs], linewidth=2.5, label="reward, of the most there is")
        axes.plot(steps, [log[f"rewards/{canary}/mean"] for log in logs], linewidth=2.5, label="canary, of weight 0")
        axes.set_title(f"{name}\npaid for: {paid}\ncanary: {asks}", fontsize=10, loc="left")
        axes.set_xlabel("optimizer step")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        row = next(row for row in run.samples() if row["held_out"])
        print(f"{name}: {row['question']} {row['before']['completion']} -> {row['after']['completion']}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(ROOT / "demo/zoo.png", dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
