"""Lay the curves of several runs over each other, and print what each of them reached.

python -m harness.compare outputs/a outputs/b [...]        # -> comparison.png and a table
"""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.curves import draw_curves
from harness.exits import UserError
from harness.settings import read_settings


def read_run(folder: Path) -> tuple[list[dict[str, Any]], dict[str, dict]]:
    """(log history, the section `rewards`) of a run's folder; raises UserError where it holds no readable run."""
    state, config = folder / "trainer_state.json", folder / "config.yaml"
    if not state.exists():
        states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
        if not states:
            raise UserError(f"{folder}: holds no run (no trainer_state.json); name an output_dir that was trained into")
        state = states[-1]  # a run that was stopped half-way
    try:
        history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{state}: not readable ({error}); the file is damaged, name another run") from error
    if not any("reward" in log for log in history):
        raise UserError(f"{state}: no reward was logged; train for at least logging_steps steps")
    return history, read_settings([str(config)], {}).rewards if config.exists() else {}


def main(folders: list[str]) -> None:
    if not folders:
        raise UserError("compare: no run named; write python -m harness.compare outputs/a outputs/b")
    runs = {folder: read_run(Path(folder)) for folder in folders}
    histories = {folder: [log for log in history if "reward" in log] for folder, (history, _) in runs.items()}
    names = list(dict.fromkeys(name for _, entries in runs.values() for name in entries))
    table = Table(title="Mean of the last 20 steps", show_edge=False)
    short = [name.removesuffix("_reward") for name in names]
    for column in ("run", *short, "total", "chars", "KL", "minutes"):
        table.add_column(column, overflow="fold")
    for folder, history in histories.items():
        last = [log for log in history if log["step"] > history[-1]["step"] - 20]

        def mean(key: str, last=last) -> str:
            values = [log[key] for log in last if log.get(key) is not None]
            return f"{sum(values) / len(values):.2f}" if values else "–"

        seconds = [log["train_runtime"] for log in runs[folder][0] if "train_runtime" in log]
        scores = [mean(f"rewards/{name}/mean") for name in names]
        others = [mean("reward"), mean("completions/mean_characters"), mean("kl")]
        table.add_row(folder, *scores, *others, f"{seconds[-1] / 60:.1f}" if seconds else "–")
    Console().print(table)
    entries = {name: entry for _, entries in runs.values() for name, entry in entries.items()}
    draw_curves(histories, entries, Path("comparison.png"))
    print("curves: comparison.png")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
