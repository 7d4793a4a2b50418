"""Print what several runs reached and how they differ, and lay their curves over each other.

python -m harness compare outputs/a outputs/b [...]                   # tables and verdicts
python -m harness compare outputs/a outputs/b -o comparison.png       # and a picture
"""

import argparse
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from harness.after.curves import draw_curves, reward_names
from harness.after.verdict import FEWEST, interval, interval_between, verdict
from harness.errors import UserError
from harness.keys import Prompts, Samples
from harness.run_folder import RunFolder, difference, flat
from harness.settings import FILE_DEFAULTS

LAST = 20  # steps of which a mean is taken
# Written into a run's config.yaml as if somebody had set them.
DEFAULTS = {"lora": None} | {f"dataset.{key}": value for key, value in FILE_DEFAULTS.items()}
for section, kind in (("prompts", Prompts), ("samples", Samples)):
    DEFAULTS |= {f"{section}.{each.name}": each.default for each in fields(kind) if each.default is not MISSING}


def training_table(runs: dict[str, dict[str, Any]], names: list[str], with_total: bool) -> Table:
    """The means of each run's last 20 steps, or of all where it has no more."""
    keys = {_short(name): f"rewards/{name}/mean" for name in names} | ({"total": "reward"} if with_total else {})
    keys |= {"characters": "completions/mean_characters", "KL": "kl"}
    columns = []
    for run in runs.values():
        logs = [log for log in run["log_history"] if "reward" in log]
        end = run["global_step"]
        begin = max((log["step"] for log in logs if log["step"] <= end - LAST), default=0)
        last = [log for log in logs if log["step"] > begin]
        found = [[log[key] for log in last if log.get(key) is not None] for key in keys.values()]
        means = [f"{sum(values) / len(values):.2f}" if values else "–" for values in found]
        report = run.get("stateful_callbacks", {}).get("Report")  # which knows the time before a resume too
        minutes = f"{report['attributes']['seconds'] / 60:.1f}" if report else "–"
        columns.append([f"the last {end - begin} of {end}" if begin else f"all {end}", *means, minutes])
    return _table("Training", runs, ["steps", *keys, "minutes"], columns)


def held_out_tables(samples: dict[str, list[dict[str, Any]]], names: list[str], weights: dict[str, float] | None):
    """The means of the held-out questions after training; and the differences of the later runs to the first one.

    These are paired where at least FEWEST questions are the same. `weights`: if they are the same in all runs.
    """
    columns = {run: _scores(rows, names, weights) for run, rows in samples.items()}
    rows = [*map(_short, names), *(["total"] if weights else [])]
    means = [[str(interval([*of.values()])).lstrip("+") if of else "–" for of in run] for run in columns.values()]
    yield _table("Held-out questions after training, with 95% intervals", samples, rows, means)
    found = []
    for other in [*columns.values()][1:]:
        pairs = [_difference(*sides) for sides in zip(next(iter(columns.values())), other, strict=True)]
        found.append([next((paired for paired, _ in pairs if paired), ""), *(words for _, words in pairs)])
    if found:
        title = f"Held-out questions, the difference to {next(iter(samples))}"
        yield _table(title, list(samples)[1:], ["questions", *rows], found)


def _scores(rows: list[dict[str, Any]], names: list[str], weights: dict[str, float] | None) -> list[dict[str, float]]:
    """By question, of each reward and, with `weights`, of the total: the scores after training that there are."""
    after = {row["question"]: row["after"]["rewards"] for row in rows}
    found = [{asked: got[name] for asked, got in after.items() if got.get(name) is not None} for name in names]
    if weights:
        found.append({asked: sum(w * (got.get(n) or 0) for n, w in weights.items()) for asked, got in after.items()})
    return found


def _difference(first: dict[str, float], other: dict[str, float]) -> tuple[str, str]:
    """(which questions, how much larger the scores of `other` are)"""
    if not (first and other):
        return "", "–"
    if len(same := [question for question in other if question in first]) >= FEWEST:
        sides = [[of[question] for question in same] for of in (first, other)]
        differences = [new - old for old, new in zip(*sides, strict=True)]
        return f"{len(same)}, paired", str(interval(differences, sides))
    return "other ones, not paired", str(interval_between([*first.values()], [*other.values()]))


def _table(title: str, runs: Iterable[str], rows: list[str], columns: list[list[str]]) -> Table:
    """One row a reward, as there may be more rewards than runs."""
    table = Table(*(Column(head, overflow="fold") for head in ("", *runs)), title=title, title_justify="left")
    for name, *cells in zip(rows, *columns, strict=True):
        table.add_row(name, *cells)
    return table


def verdict_of(run: RunFolder, samples: list[dict[str, Any]]) -> str:
    """The verdict on a finished run, in a line, from its held-out samples."""
    asked = samples[0]["after"]["rewards"] if samples else ()  # a reward that lacked its column was left out
    return verdict(samples, {name: weight for name, weight in run.weights().items() if name in asked}).line


def differences(runs: list[RunFolder]) -> Table:
    """The settings that are not the same in all runs, and rewards.py where it differs from the first run's."""
    table = Table(*(Column(head, overflow="fold") for head in ("what differs", *map(str, runs))))
    settings = [flat(run.settings()) for run in runs]
    for key in sorted(set().union(*settings) - {"training.output_dir"}):
        found = [each.get(key, DEFAULTS.get(key)) for each in settings]
        values = ["–" if value is None else str(value) for value in found]
        if len(set(values)) > 1:
            table.add_row(key, *values)
    files = [run.rewards_file for run in runs]
    codes = [file.read_text(encoding="utf-8") if file.exists() else "" for file in files]
    if len(set(codes)) > 1:
        others = ("the same" if code == codes[0] else difference(codes[0], code) if code else "" for code in codes[1:])
        first = "as in its folder" if codes[0] else ""
        table.add_row("rewards.py", *(text or "not there" for text in (first, *others)))
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="the output_dir of a run")
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help="draw the curves into this file")
    options = parser.parse_args(arguments)
    if (png := options.output) and (png.suffix != ".png" or not png.absolute().parent.is_dir()):
        raise UserError(f"-o {png}: name a .png file in a folder that is there")
    runs = [RunFolder(folder) for folder in dict.fromkeys(options.folders)]
    states = {str(run): run.state() for run in runs}
    histories = {run: state["log_history"] for run, state in states.items()}
    names = reward_names(histories)
    console = Console(markup=False, highlight=False)  # code of a reward may look like markup
    recorded = [run for run in runs if run.settings_file.exists()]
    weights = [run.weights() for run in recorded]
    same = len(recorded) == len(runs) and all(each == weights[0] for each in weights)
    totals = same or len(runs) == 1
    console.print(training_table(states, names, totals))
    samples = {str(run): [row for row in run.samples() or () if row["held_out"] and row["after"]] for run in recorded}
    console.print(*held_out_tables(samples, names, weights[0] if same else None))
    for run, rows in zip(recorded, samples.values(), strict=True):
        console.print(f"{run}: {verdict_of(run, rows)}")
    if len(recorded) > 1 and (table := differences(recorded)).rows:
        console.print(table)
    if png:
        draw_curves(histories, recorded[0].titles() if recorded else {}, png, totals=totals)
        print(f"curves: {png}")


def _short(name: str) -> str:
    return name.removesuffix("_reward")
