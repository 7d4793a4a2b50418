"""Curves: the article's figure, for one run or for several laid over each other."""

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.files import write_whole
from harness.reward import reward_means

History = list[dict[str, Any]]  # `log_history` of trainer_state.json
Runs = dict[str, History]  # by the run's name

JAPANESE = ("Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "Yu Gothic", "Hiragino Sans", "TakaoPGothic")


@dataclass
class Panel:
    """What one panel shows.

    `key`: of the logs; `spread`: that of its standard deviation. `weights`: the rewards of which it is a weighted sum.
    """

    key: str
    heading: str
    spread: str = ""
    weights: dict[str, float] = field(default_factory=dict)


def draw_curves(runs: Runs, weights: dict[str, float], path: Path) -> None:
    """Each reward, the total, completion length and KL over the optimizer steps; a single run with its spread.

    A point is a log, often of few questions; the line is smoothed. Evaluations are dots over the lines. The spread ends
    at the lowest and the highest `rewards/.../min` and `max` that were logged: no score lies beyond them. What no run
    has logged, as KL with beta 0, has no panel.

    Args:
        runs: the histories to lay over each other.
        weights: of the rewards, whose panels come in this order; empty where the runs have different ones, so that
            their totals are different sums, and not drawn.
        path: of the PNG.
    """
    panels = _panels(runs, weights)
    if not panels:  # before the first log of training
        return
    rows = math.ceil(len(panels) / 2)
    fonts = [font for font in JAPANESE if font in font_manager.get_font_names()]
    with rc_context({"font.family": ["DejaVu Sans", *fonts]}):
        figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
        axes = None
        for place, panel in enumerate(panels, start=1):
            end = 2 * rows if panel is panels[-1] else place  # so that no place is left empty
            axes = figure.add_subplot(rows, 2, (place, end), sharex=axes)
            for run, history in runs.items():
                _draw_run(axes, panel, history, run, alone=len(runs) == 1)
            axes.set_title(panel.heading, fontsize=10, loc="left", parse_math=False)  # or $ would begin a formula
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
        figure.supxlabel("optimizer step", fontsize=8)
        _add_legend(figure)
        picture = io.BytesIO()
        figure.savefig(picture, dpi=110)
    write_whole(path, picture.getvalue())


def reward_names(runs: Runs) -> list[str]:
    """Of all rewards in the logs, in the order of the first log that has one."""
    names: dict[str, None] = {}
    for history in runs.values():
        for log in history:
            names |= dict.fromkeys(reward_means(log))
    return list(names)


def _panels(runs: Runs, weights: dict[str, float]) -> list[Panel]:
    panels = []
    for name in weights or reward_names(runs):
        heading = f"{name} (weight {weights[name]:g})" if weights else name
        panels.append(Panel(f"rewards/{name}/mean", heading, f"rewards/{name}/std", {name: 1.0}))
    if weights:
        panels.append(Panel("reward", "total reward (weighted)", "reward_std", weights))
    panels.append(Panel("completions/mean_characters", "completion length (characters)"))
    panels.append(Panel("completions/mean_length", "completion length (tokens)"))
    panels.append(Panel("kl", "KL: distance from the untrained model (per token)"))
    return [panel for panel in panels if any(_points(history, panel.key)[0] for history in runs.values())]


def _draw_run(axes: Axes, panel: Panel, history: History, run: str, alone: bool) -> None:
    """One run in one panel; its spread too where it is `alone`."""
    steps, values = _points(history, panel.key)
    line = _smoothed(values)
    (drawn,) = axes.plot(steps, line, label=run or "smoothed", linewidth=1.5)
    color = drawn.get_color()
    axes.plot(steps, values, ".", color=color, markersize=3, alpha=0.5)
    if alone and panel.spread:
        _, spreads = _points(history, panel.spread)
        spread = _smoothed(spreads)
        lowest, highest = _bounds(history, panel.weights)
        low = (line - spread).clip(lowest, highest)
        high = (line + spread).clip(lowest, highest)
        axes.fill_between(steps, low, high, alpha=0.2, linewidth=0, label="± 1 standard deviation")
    steps, values = _points(history, f"eval_{panel.key}")
    if steps:
        label = "evaluation" if alone else None
        axes.plot(steps, values, "o", color=color, markersize=4, markeredgecolor="k", label=label)


def _points(history: History, key: str) -> tuple[list[int], pd.Series]:
    """The steps at which it was logged, and the values."""
    logs = [log for log in history if log.get(key) is not None]
    values = pd.Series([log[key] for log in logs], dtype=float)
    return [log["step"] for log in logs], values


def _bounds(history: History, weights: dict[str, float]) -> tuple[float, float]:
    """The lowest and the highest weighted sum of the scores that were logged; unbounded where a reward logs none."""
    lowest = 0.0
    highest = 0.0
    for name, weight in weights.items():
        _, lows = _points(history, f"rewards/{name}/min")
        _, highs = _points(history, f"rewards/{name}/max")
        ends = [weight * score for score in (*lows, *highs)]
        lowest += min(ends, default=-math.inf)
        highest += max(ends, default=math.inf)
    return (lowest, highest) if weights else (-math.inf, math.inf)


def _smoothed(values: pd.Series) -> pd.Series:
    """Running means, of 5 points or of a twentieth of them; at either end a straight line, as a mean there would lag.

    They are as they were where there are hardly more points than that.
    """
    if len(values) < 8:
        return values
    from scipy.signal import savgol_filter  # half a second

    window = max(5, len(values) // 20 | 1)
    line = pd.Series(savgol_filter(values, window, polyorder=1))
    return line.clip(values.min(), values.max())


def _add_legend(figure: Figure) -> None:
    """One for all panels, which covers no curve."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    if named:
        legend = figure.legend(
            named.values(), named.keys(), loc="outside upper left", ncols=4, fontsize=8, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
