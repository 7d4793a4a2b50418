"""Curves: the article's figure, for one run or for several laid over each other."""

import os
import re
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from harness.rewarding import reward_functions, title


def draw_curves(runs: dict[str, list[dict[str, Any]]], entries: dict[str, dict[str, Any]], path: Path) -> None:
    """Each reward, the total, completion length and KL over the optimizer steps; a single run with its spread.

    Args:
        runs: `log_history` of `trainer_state.json` by the run's name.
        entries: the section `rewards` of the settings, for the weights (shown for a single run).
        path: of the PNG.
    """
    runs = {run: [log for log in history if "reward" in log] for run, history in runs.items()}
    names = dict.fromkeys(name for history in runs.values() for log in history for name in reward_means(log))
    names = sorted(names, key=list(entries).index) if set(names) <= set(entries) else list(names)
    panels = [(f"rewards/{name}/mean", name, f"rewards/{name}/std") for name in names] + [
        ("reward", "total reward (weighted)", "reward_std"),
        ("completions/mean_characters", "completion length (characters)", None),
        ("completions/mean_length", "completion length (tokens)", None),
        ("kl", "KL to the reference model (nats a token)", None),
    ]
    rows, alone = -(-len(panels) // 2), len(runs) == 1
    figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    for axes, (key, heading, spread) in zip(figure.subplots(rows, 2).flat, panels, strict=False):
        for run, history in runs.items():
            points = [log for log in history if log.get(key) is not None]
            steps, values = [log["step"] for log in points], [log[key] for log in points]
            axes.plot(steps, values, "." if len(steps) == 1 else "-", label=run, linewidth=1.5)
            if spread and alone:
                low, high = ([log[key] + sign * (log[spread] or 0) for log in points] for sign in (-1, 1))
                axes.fill_between(steps, low, high, alpha=0.2, linewidth=0, label="± 1 standard deviation")
        if heading in reward_functions():  # a reward's unit is what its docstring says first
            axes.set_ylabel(textwrap.shorten(re.split("[,;:]", title(heading))[0], 44), fontsize=7)
        weight = f" (weight {entries[heading]['weight']:g})" if alone and heading in entries else ""
        axes.set_title(heading + weight, fontsize=10, loc="left")
        axes.set_xlabel("optimizer step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if any(axes.get_legend_handles_labels()[1]):
            axes.legend(fontsize=8)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    temporary = path.with_suffix(f".{os.getpid()}.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)  # whoever looks at it meanwhile never sees half a picture


def reward_means(log: dict[str, float]) -> dict[str, float]:
    """The mean of each reward in one log of TRL's, by the reward's name."""
    return {key.split("/")[1]: log[key] for key in log if key.startswith("rewards/") and key.endswith("/mean")}
