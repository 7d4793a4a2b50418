"""Curves: the article's figure, for one run or for several laid over each other."""

import io
import math
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.errors import UserError
from harness.files import write_whole
from harness.reward import reward_means
from harness.run_folder import RunFolder

FRONTIER = "frontier"  # no key of a log: two of them against each other
JAPANESE = ("Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "Yu Gothic", "Hiragino Sans", "TakaoPGothic")
SMOOTH = 100  # points; with more of them a line is the running mean of a twentieth of them, over the points themselves


def draw_curves(
    runs: dict[str, list[dict[str, Any]]],
    titles: dict[str, str],
    path: Path,
    weights: dict[str, float] | None = None,
    totals: bool = True,
) -> None:
    """Each reward, the total, completion length and KL over the optimizer steps; a single run with its spread.

    Evaluations are dots over the lines. The spread ends at the lowest and the highest `rewards/.../min` and `max` that
    were logged: no score lies beyond them.

    Args:
        runs: `log_history` of `trainer_state.json` by the run's name; what is at a step below 1 is an earlier run's.
        titles: what each reward measures, by the name it is logged under; the panels come in this order.
        path: of the PNG.
        weights: of the rewards, to be shown.
        totals: whether the total reward is the same sum in all runs.
    """
    weights = weights or {}
    order = {name: i for i, name in enumerate(titles)}  # a resumed run's logs have theirs by the alphabet
    names = sorted(reward_names(runs), key=lambda name: order.get(name, len(order)))
    panels = [(f"rewards/{name}/mean", name, f"rewards/{name}/std") for name in names] + [
        *([("reward", "total reward (weighted)", "reward_std")] if totals else []),
        ("completions/mean_characters", "completion length (characters)", None),
        ("completions/mean_length", "completion length (tokens)", None),
        ("kl", "KL: distance from the untrained model (a token)", None),
    ]
    if not any("kl" in log for history in runs.values() for log in history):  # with beta 0
        panels.pop()
    elif len(runs) > 1 and totals:
        panels.append((FRONTIER, "total reward against KL: what a run has paid for it", None))
    families = ["DejaVu Sans", *(font for font in JAPANESE if font in font_manager.get_font_names())]
    rows, alone = -(-len(panels) // 2), len(runs) == 1
    continued = any(log["step"] < 1 for history in runs.values() for log in history if "reward" in log)
    with rc_context({"font.family": families}):
        figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
        for axes, (key, heading, spread) in zip(figure.subplots(rows, 2).flat, panels, strict=False):
            for run, history in runs.items():
                if key == FRONTIER:
                    _draw_frontier(axes, history, run)
                    continue
                bounds = _scored(history, {heading: 1} if heading in names else weights)
                _draw_run(axes, history, key, spread if alone else None, bounds, run, alone)
            if heading in titles:  # a reward's unit is what its title says first
                unit = re.split(r"[,;:.、。]|(?<=\))", titles[heading].replace("`", ""))[0]
                lines = textwrap.wrap(unit, 30 if unit.isascii() else 16)[:2]
                axes.set_ylabel("\n".join(lines), fontsize=7, parse_math=False)  # or two $ would be TeX between them
            weight = f" (weight {weights[heading]:g})" if heading in weights else ""
            axes.set_title(heading + weight, fontsize=10, loc="left", parse_math=False)
            axes.set_xlabel(
                "KL" if key == FRONTIER else "optimizer step" + "; up to 0 of the run that it goes on from" * continued,
                fontsize=8,
            )
            if continued and key != FRONTIER:
                axes.axvline(0.5, color="k", linewidth=0.8, linestyle=":")
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
        for axes in figure.axes[len(panels) :]:
            axes.remove()
        named: dict[str, Any] = {}  # in one legend, which covers no curve
        for axes in figure.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                named.setdefault(label, handle)
        if named:
            place = {"loc": "outside upper left", "ncols": 4, "fontsize": 8, "frameon": False}
            for text in figure.legend(named.values(), named.keys(), **place).get_texts():
                text.set_parse_math(False)
        figure.savefig(png := io.BytesIO(), dpi=110)
    write_whole(path, png.getvalue())


def _draw_run(
    axes: Axes,
    history: list[dict[str, Any]],
    key: str,
    spread: str | None,
    bounds: tuple[float, float],
    label: str,
    alone: bool,
) -> None:
    """One run in one panel; `bounds`: those of its scores, beyond which no spread is drawn."""
    steps, values, spreads = _points(history, key, spread)
    line, around = _smoothed(values), _smoothed(spreads)
    (drawn,) = axes.plot(
        steps, line, "." if len(steps) == 1 else "-", label=label if len(steps) else None, linewidth=1.5
    )
    if len(steps) > SMOOTH:
        axes.plot(steps, values, ".", color=drawn.get_color(), markersize=1.5, alpha=0.4)
    if spread:
        low, high = ((line + side).clip(*bounds) for side in (-around, around))
        axes.fill_between(steps, low, high, alpha=0.2, linewidth=0, label="± 1 standard deviation")
    evaluated = _points(history, f"eval_{key}", None)
    if len(evaluated[0]):
        label = "evaluation" if alone else None
        axes.plot(*evaluated[:2], "o", color=drawn.get_color(), markersize=4, markeredgecolor="k", label=label)


def _draw_frontier(axes: Axes, history: list[dict[str, Any]], label: str) -> None:
    """How far from the untrained model each reward was: a hacked run gets its reward farther out."""
    logs = [log for log in history if log.get("kl") is not None and log.get("reward") is not None]
    if logs:
        kl, reward = (_smoothed(np.array([log[key] for log in logs])) for key in ("kl", "reward"))
        axes.plot(kl, reward, ".", markersize=4, label=label)


def _scored(history: list[dict[str, Any]], weights: dict[str, float]) -> tuple[float, float]:
    """The lowest and the highest weighted sum of the scores that were logged; unbounded where a reward logs none."""
    ends = []
    for name, weight in weights.items():
        lows, highs = ([log.get(f"rewards/{name}/{end}") for log in history] for end in ("min", "max"))
        low = min((value for value in lows if value is not None), default=-math.inf)
        high = max((value for value in highs if value is not None), default=math.inf)
        ends += [sorted((weight * low, weight * high))] if weight else []
    return tuple(map(sum, zip(*ends, strict=True))) if ends else (-math.inf, math.inf)


def earlier_logs(run: RunFolder, seen: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """The logs of the run whose model this one goes on from, and of those before it, at steps up to 0; [] if none."""
    seen = (*seen, run.path.resolve())
    try:
        model = RunFolder(run.settings()["model"]["pretrained_model_name_or_path"])
        if model.path.resolve() in seen or not model.state_file.exists():
            return []
        state = model.state()
        logs = earlier_logs(model, seen) + state["log_history"]
        return [log | {"step": log["step"] - state["global_step"]} for log in logs]
    except (UserError, KeyError):  # its files are damaged, or from elsewhere
        return []


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
