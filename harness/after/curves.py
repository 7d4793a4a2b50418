"""Curves: the article's figure, for one run or for several laid over each other."""

import io
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.files import write_whole
from harness.reward import reward_means

SMOOTH = 100  # points; with more of them a line is the running mean of a twentieth of them, over the points themselves


def draw_curves(
    runs: dict[str, list[dict[str, Any]]], titles: dict[str, str], path: Path, weights: dict[str, float] | None = None
) -> None:
    """Each reward, the total, completion length and KL over the optimizer steps; a single run with its spread.

    Evaluations are dots over the lines.

    Args:
        runs: `log_history` of `trainer_state.json` by the run's name.
        titles: what each reward measures, by the name it is logged under; the panels come in this order.
        path: of the PNG.
        weights: of the rewards, to be shown.
    """
    weights = weights or {}
    order = {name: i for i, name in enumerate(titles)}  # a resumed run's logs have theirs by the alphabet
    names = sorted(reward_names(runs), key=lambda name: order.get(name, len(order)))
    panels = [(f"rewards/{name}/mean", name, f"rewards/{name}/std") for name in names] + [
        ("reward", "total reward (weighted)", "reward_std"),
        ("completions/mean_characters", "completion length (characters)", None),
        ("completions/mean_length", "completion length (tokens)", None),
        ("kl", "KL to the reference model (nats a token)", None),
    ]
    if not any("kl" in log for history in runs.values() for log in history):  # with beta 0
        panels.pop()
    rows, alone = -(-len(panels) // 2), len(runs) == 1
    figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    for axes, (key, heading, spread) in zip(figure.subplots(rows, 2).flat, panels, strict=False):
        for run, history in runs.items():
            steps, values, spreads = _points(history, key, spread)
            line, around = _smoothed(values), _smoothed(spreads)
            (drawn,) = axes.plot(steps, line, "." if len(steps) == 1 else "-", label=run, linewidth=1.5)
            if len(steps) > SMOOTH:
                axes.plot(steps, values, ".", color=drawn.get_color(), markersize=1.5, alpha=0.4)
            if spread and alone:
                label = "± 1 standard deviation"
                axes.fill_between(steps, line - around, line + around, alpha=0.2, linewidth=0, label=label)
            evaluated = _points(history, f"eval_{key}", None)
            if len(evaluated[0]):
                label = "evaluation" if alone else None
                axes.plot(*evaluated[:2], "o", color=drawn.get_color(), markersize=4, markeredgecolor="k", label=label)
        if heading in titles:  # a reward's unit is what its title says first
            unit = re.split(r"[,;:.]|(?<=\))", titles[heading].replace("`", ""))[0]
            axes.set_ylabel("\n".join(textwrap.wrap(unit, 30)[:2]), fontsize=7)
        weight = f" (weight {weights[heading]:g})" if heading in weights else ""
        axes.set_title(heading + weight, fontsize=10, loc="left")
        axes.set_xlabel("optimizer step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if any(axes.get_legend_handles_labels()[1]):
            axes.legend(fontsize=8)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    figure.savefig(png := io.BytesIO(), dpi=110)
    write_whole(path, png.getvalue())


def reward_names(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(name for history in runs.values() for log in history for name in reward_means(log)))


def _points(history: list[dict[str, Any]], key: str, spread: str | None) -> np.ndarray:
    """(3, points): step, value and spread of each log that has the key."""
    logs = [log for log in history if log.get(key) is not None]
    return np.array([[log["step"], log[key], log.get(spread) or 0] for log in logs], dtype=float).reshape(-1, 3).T


def _smoothed(values: np.ndarray) -> pd.Series:
    """Running means, shorter at the ends; as they are where there are few points."""
    window = len(values) // 20 if len(values) > SMOOTH else 1
    return pd.Series(values).rolling(window, center=True, min_periods=1).mean()
