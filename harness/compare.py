"""Print what several runs reached, and lay their curves over each other.

python -m harness.compare outputs/a outputs/b [...]                   # a table: means of the last 20 steps
python -m harness.compare outputs/a outputs/b -o comparison.png       # and a picture
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python PATH/harness/compare.py` from any folder
from harness.curves import draw_curves, reward_means
from harness.exits import UserError


def read_run(folder: Path) -> list[dict[str, Any]]:
    """The log history of a run's folder; raises UserError where it holds no readable run."""
    state = folder / "trainer_state.json"
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
    return history


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="the output_dir of a run")
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help="draw the curves into this file")
    options = parser.parse_args(arguments)
    runs = {str(folder): read_run(folder) for folder in options.folders}
    histories = {folder: [log for log in history if "reward" in log] for folder, history in runs.items()}
    names = dict.fromkeys(name for history in histories.values() for log in history for name in reward_means(log))
    table = Table(title="Mean of the last 20 steps", show_edge=False)
    for column in ("run", *(name.removesuffix("_reward") for name in names), "total", "chars", "KL", "minutes"):
        table.add_column(column, overflow="fold")
    keys = [*(f"rewards/{name}/mean" for name in names), "reward", "completions/mean_characters", "kl"]
    for folder, history in histories.items():
        last = [log for log in history if log["step"] > history[-1]["step"] - 20]
        columns = [[log[key] for log in last if log.get(key) is not None] for key in keys]
        means = [f"{sum(values) / len(values):.2f}" if values else "–" for values in columns]
        seconds = [log["train_runtime"] for log in runs[folder] if "train_runtime" in log]
        table.add_row(folder, *means, f"{seconds[-1] / 60:.1f}" if seconds else "–")
    Console().print(table)
    if options.output:
        if options.output.suffix != ".png" or not options.output.absolute().parent.is_dir():
            raise UserError(f"-o {options.output}: name a .png file in a folder that is there")
        draw_curves(histories, {}, options.output)
        print(f"curves: {options.output}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
