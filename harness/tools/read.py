"""Read what a run sampled: whole completions, with rewards, advantage and the columns that the rewards use.

python -m harness read outputs/a                        # of the last step, the groups that differ most
python -m harness read outputs/a --step 40 --sort length_reward
python -m harness read outputs/a --worst answer_reward  # of all steps, single completions with the lowest scores
"""

import argparse
from pathlib import Path

import pandas as pd
from rich.console import Console

from harness.errors import UserError, in_short
from harness.run_folder import RunFolder

OF_TRL = ["step", "prompt", "completion", "advantage"]


def read_steps(folder: Path, step: int | None, worst: bool) -> tuple[pd.DataFrame, list[str], list[str]]:
    """(completions that TRL kept, with `total` and `group`; names of their scores; of the other columns).

    Of the step or, without one, of the last that kept any; of all with `worst`.
    """
    files = {int(file.stem.split("_")[1]): file for file in sorted(folder.glob("completions/completions_*.parquet"))}
    if not files:
        raise UserError(f"{folder}: no completions were kept; train with training.log_completions: true")
    if step is not None and step not in files:
        raise UserError(f"--step {step}: was not kept; there are {len(files)} from {min(files)} to {max(files)}")
    run = RunFolder(folder)
    size = run.settings()["training"].get("num_generations", 8)  # upstream's default
    parts: list[pd.DataFrame] = []
    for file in reversed(files.values()) if step is None else [files[step]]:
        try:
            rows = pd.read_parquet(file)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: not readable ({in_short(error)}); try another run or --step") from error
        for side in ("prompt", "completion"):
            rows[side] = ["\n".join(message["content"] for message in messages) for messages in rows[side]]
        same = (rows.prompt != rows.prompt.shift()).cumsum()
        group = rows.groupby(same).cumcount() // size
        parts.append(rows.assign(group=rows.groupby([same, group]).ngroup() + 1))
        if not worst and len(rows):
            break
    rows = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    weights = {name: weight for name, weight in run.weights().items() if name in rows}  # others lacked their column
    rows["total"] = sum(rows[name].fillna(0) * weight for name, weight in weights.items())
    others = [column for column in rows if column not in (*OF_TRL, *weights, "group", "total")]
    return rows, ["total", *weights] if weights else [], others


def chosen(rows: pd.DataFrame, by: str, worst: bool, count: int) -> list[pd.DataFrame]:
    """The groups in which the score differs most; or, of the worst completions, each for itself.

    Of equal scores those of other groups come first, and of these the latest, which say most of the trained policy.
    """
    if not worst:
        groups = rows.groupby(["step", "group"])
        order = (groups[by].min() - groups[by].max()).dropna().nsmallest(count)
        return [groups.get_group(which).sort_values(by, ascending=False) for which in order.index]
    rows = rows.dropna(subset=[by])
    rows = rows.assign(again=rows.groupby(["step", "group", by]).cumcount(), before=-rows.step)
    rows = rows.sort_values([by, "again", "before"], kind="stable").head(count)
    return [rows.iloc[[i]] for i in range(len(rows))]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the output_dir of a run")
    parser.add_argument("--step", type=int, metavar="N", help="default: the last one, and all with --worst")
    parser.add_argument("--groups", type=int, default=3, metavar="N", help="how many to show; default: 3")
    parser.add_argument("--sort", default="total", metavar="REWARD", help="groups by the spread of this reward")
    parser.add_argument("--worst", metavar="REWARD", help="single completions instead, those with its lowest scores")
    options = parser.parse_args(arguments)
    rows, names, others = read_steps(options.folder, options.step, bool(options.worst))
    if (by := options.worst or options.sort) not in names:  # TRL's file is empty where a run was resumed in mid-batch
        raise UserError(f"{by}: not among the scores that were kept ({', '.join(names)}); name one, or another --step")
    console = Console(width=80, highlight=False, markup=False)
    for shown in chosen(rows, by, bool(options.worst), options.groups):
        first, groups = shown.iloc[0], rows.group[rows.step == shown.step.iloc[0]].max()
        console.rule(f"step {first.step}, group {first.group} of {groups}", align="left")
        console.print(first.prompt, style="bold")
        shared = [name for name in others if shown[name].nunique(dropna=False) == 1]
        console.print("".join(f"{name}: {first[name]}\n" for name in shared if pd.notna(first[name])), end="")
        for row in shown.to_dict("records"):
            scores = [f"{name.removesuffix('_reward')} {row[name]:.2f}".replace(" nan", " –") for name in names]
            own = "".join(f"{name}: {row[name]}\n" for name in others if name not in shared)
            console.print(f"\n{row['completion']}\n{own}({', '.join(scores)}; advantage {row['advantage']:+.2f})")
