"""Print what several runs reached and how they differ, and lay their curves over each other.

python -m harness compare outputs/a outputs/b [...]                   # tables and verdicts
python -m harness compare outputs/a outputs/b -o comparison.png       # and a picture
"""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.after.curves import draw_curves, reward_names
from harness.after.verdict import interval, verdict
from harness.errors import UserError
from harness.run_folder import RunFolder, difference, flat


def training_table(runs: dict[str, dict[str, Any]], names: list[str]) -> Table:
    """The means of each run's last 20 steps."""
    table = Table(title="Training: the last 20 steps")
    for column in ("run", *map(_short, names), "total", "chars", "KL", "minutes"):
        table.add_column(column, overflow="fold")
    keys = [*(f"rewards/{name}/mean" for name in names), "reward", "completions/mean_characters", "kl"]
    for folder, run in runs.items():
        logs = [log for log in run["log_history"] if "reward" in log]
        last = [log for log in logs if log["step"] > logs[-1]["step"] - 20]
        columns = [[log[key] for log in last if log.get(key) is not None] for key in keys]
        means = [f"{sum(values) / len(values):.2f}" if values else "–" for values in columns]
        report = run.get("stateful_callbacks", {}).get("Report")  # which knows the time before a resume too
        table.add_row(folder, *means, f"{report['attributes']['seconds'] / 60:.1f}" if report else "–")
    return table


def held_out_table(samples: dict[str, list[dict[str, Any]]], names: list[str]) -> Table:
    """The means of the held-out questions after training, with their 95% intervals."""
    table = Table(title="Held-out questions after training, with 95% intervals")
    for column in ("run", *map(_short, names)):
        table.add_column(column, overflow="fold")
    for folder, rows in samples.items():
        scores = [[row["after"]["rewards"].get(name) for row in rows] for name in names]
        scores = [[score for score in column if score is not None] for column in scores]
        table.add_row(folder, *(str(interval(column)).lstrip("+") if column else "–" for column in scores))
    return table


def verdict_of(run: RunFolder, samples: list[dict[str, Any]]) -> str:
    """The verdict on a finished run, in a line, from its held-out samples."""
    asked = samples[0]["after"]["rewards"] if samples else ()  # a reward that lacked its column was left out
    return verdict(samples, {name: weight for name, weight in run.weights().items() if name in asked}).line


def differences(runs: list[RunFolder]) -> Table:
    """The settings that are not the same in all runs, and rewards.py where it differs from the first run's."""
    table = Table("what differs", *map(str, runs))
    settings = [flat(run.settings()) for run in runs]
    for key in sorted(set().union(*settings) - {"training.output_dir"}):
        values = [str(each.get(key, "–")) for each in settings]
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
    console.print(training_table(states, names))

    recorded = [run for run in runs if run.settings_file.exists()]
    samples = {str(run): [row for row in run.samples() or () if row["held_out"] and row["after"]] for run in recorded}
    console.print(held_out_table(samples, names))
    for run, rows in zip(recorded, samples.values(), strict=True):
        console.print(f"{run}: {verdict_of(run, rows)}")
    if len(recorded) > 1 and (table := differences(recorded)).rows:
        console.print(table)
    if png:
        draw_curves(histories, recorded[0].titles() if recorded else {}, png)
        print(f"curves: {png}")


def _short(name: str) -> str:
    return name.removesuffix("_reward")
