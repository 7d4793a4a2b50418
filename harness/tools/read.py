"""Read what a run sampled at a step: whole completions, with rewards and advantage, in the groups that differ most.

python -m harness read outputs/a [--step 40] [--sort length_reward | --worst answer_reward]
"""

import argparse
from pathlib import Path

import pandas as pd
from rich.console import Console

from harness.errors import UserError, in_short
from harness.run_folder import RunFolder


def read_step(folder: Path, step: int | None) -> tuple[pd.DataFrame, list[str]]:
    """(completions that TRL kept, with `total` and `group`, names of their scores) of a step; None: of the last."""
    files = {int(file.stem.split("_")[1]): file for file in folder.glob("completions/completions_*.parquet")}
    if not files:
        raise UserError(f"{folder}: no completions were kept; train with training.log_completions: true")
    if (step := max(files) if step is None else step) not in files:
        raise UserError(f"--step {step}: was not kept; there are {len(files)} from {min(files)} to {max(files)}")
    try:
        rows = pd.read_parquet(files[step])
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not readable ({in_short(error)}); try another run or --step") from error
    run = RunFolder(folder)
    weights = {name: weight for name, weight in run.weights().items() if name in rows}  # others lacked their column
    rows["total"] = sum(rows[name].fillna(0) * weight for name, weight in weights.items())
    for side in ("prompt", "completion"):
        rows[side] = ["\n".join(message["content"] for message in messages) for messages in rows[side]]
    same = (rows.prompt != rows.prompt.shift()).cumsum()
    group = rows.groupby(same).cumcount() // run.settings()["training"].get("num_generations", 8)  # upstream's default
    return rows.assign(group=rows.groupby([same, group]).ngroup() + 1), ["total", *weights] if weights else []


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the output_dir of a run")
    parser.add_argument("--step", type=int, metavar="N", help="default: the last one")
    parser.add_argument("--groups", type=int, default=3, metavar="N", help="how many to show; default: 3")
    parser.add_argument("--sort", default="total", metavar="REWARD", help="groups by the spread of this reward")
    parser.add_argument("--worst", metavar="REWARD", help="single completions instead, those with its lowest scores")
    options = parser.parse_args(arguments)
    rows, names = read_step(options.folder, options.step)
    if (by := options.worst or options.sort) not in names:  # TRL's file is empty where a run was resumed in mid-batch
        raise UserError(f"{by}: not among the scores of this step ({', '.join(names)}); name one, or another --step")
    parts = rows.groupby(rows.index if options.worst else "group")
    order = parts[by].min() if options.worst else parts[by].min() - parts[by].max()
    console = Console(width=80, highlight=False, markup=False)
    for part in order.dropna().nsmallest(options.groups).index:
        shown = parts.get_group(part).sort_values(by, ascending=False)
        console.rule(f"step {shown.step.iloc[0]}, group {shown.group.iloc[0]} of {rows.group.max()}", align="left")
        console.print(shown.prompt.iloc[0], style="bold")
        for row in shown.to_dict("records"):
            scores = [f"{name.removesuffix('_reward')} {row[name]:.2f}".replace(" nan", " –") for name in names]
            console.print(f"\n{row['completion']}\n({', '.join(scores)}; advantage {row['advantage']:+.2f})")
