"""Print what several runs reached and how they differ, and lay their curves over each other.

python -m harness.compare outputs/a outputs/b [...]                   # tables and verdicts
python -m harness.compare outputs/a outputs/b -o comparison.png       # and a picture
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python PATH/harness/compare.py` from any folder
from harness.curves import draw_curves, reward_names
from harness.exits import UserError, exit_status
from harness.record import difference, flat
from harness.rewarding import logged_name
from harness.verdict import interval, verdict


def read_run(folder: Path) -> dict[str, Any]:
    """The TrainerState of a run's folder; raises UserError where it holds no readable run."""
    state = folder / "trainer_state.json"
    if not state.exists():
        states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
        if not states:
            raise UserError(f"{folder}: holds no run (no trainer_state.json); name an output_dir that was trained into")
        state = states[-1]  # a run that was stopped half-way
    try:
        run = json.loads(state.read_text(encoding="utf-8"))
        logged = any("reward" in log for log in run["log_history"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{state}: not readable ({error}); the file is damaged, name another run") from error
    if not logged:
        raise UserError(f"{state}: no reward was logged; train for at least logging_steps steps")
    return run


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


def differences(folders: list[Path], settings: list[dict[str, Any]]) -> Table:
    """The settings that are not the same in all runs, and rewards.py where it differs from the first run's."""
    table = Table("what differs", *map(str, folders))
    flattened = [flat(each) for each in settings]
    for key in sorted(set().union(*flattened) - {"training.output_dir"}):
        values = [str(each.get(key, "–")) for each in flattened]
        if len(set(values)) > 1:
            table.add_row(key, *values)
    codes = [(folder / "rewards.py").read_text(encoding="utf-8") for folder in folders]
    if len(set(codes)) > 1:
        table.add_row("rewards.py", "", *(difference(codes[0], code) or "the same" for code in codes[1:]))
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="the output_dir of a run")
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help="draw the curves into this file")
    options = parser.parse_args(arguments)
    if (png := options.output) and (png.suffix != ".png" or not png.absolute().parent.is_dir()):
        raise UserError(f"-o {png}: name a .png file in a folder that is there")
    runs = {str(folder): read_run(folder) for folder in options.folders}
    histories = {folder: run["log_history"] for folder, run in runs.items()}
    names = reward_names(histories)
    console = Console(markup=False, highlight=False)  # code of a reward may look like markup
    console.print(training_table(runs, names))

    read = [folder for folder in map(Path, runs) if (folder / "config.yaml").exists()]
    settings = [yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) for folder in read]
    samples = {}
    for folder in read:
        lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        samples[str(folder)] = [row for row in map(json.loads, lines) if row["held_out"] and row["after"]]
    console.print(held_out_table(samples, names))
    for (folder, rows), sections in zip(samples.items(), settings, strict=True):
        weights = {logged_name(name): entry["weight"] for name, entry in sections["rewards"].items()}
        weights = {name: weight for name, weight in weights.items() if rows and name in rows[0]["after"]["rewards"]}
        console.print(f"{folder}: {verdict(rows, weights)[1]}")
    if len(read) > 1 and (table := differences(read, settings)).rows:
        console.print(table)
    if png:
        draw_curves(histories, {}, png)
        print(f"curves: {png}")


def _short(name: str) -> str:
    return name.removesuffix("_reward")


if __name__ == "__main__":
    sys.exit(exit_status(main, "the runs are as they were"))
