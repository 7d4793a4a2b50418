"""Read what a run sampled: whole completions, with rewards, advantage and the columns that the rewards use.

python -m harness read outputs/a                        # of the last step, the groups that differ most
python -m harness read outputs/a --step 40              # of that step
python -m harness read outputs/a --worst answer         # of all steps, single completions with the lowest scores

Completions are kept by training.log_completions: true; without them --worst shows the held-out answers.
"""

import argparse
from pathlib import Path

import pandas as pd
from pandas import DataFrame
from rich.console import Console

from harness.after.verdict import answered
from harness.errors import UserError, in_short
from harness.reward import score_words, short, total
from harness.run_folder import RunFolder

NOT_OF_THE_DATA = ["step", "prompt", "completion", "group", "again"]


def read_file(file: Path, group_size: int) -> DataFrame:
    """The completions of one step, with their messages as text, and `group`: `step 40, group 1 of 8`."""
    try:
        rows = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable ({in_short(error)})") from error
    for side in ("prompt", "completion"):
        rows[side] = ["\n".join(message["content"] for message in messages) for messages in rows[side]]
    groups = len(rows) // group_size
    rows["group"] = [f"step {step}, group {1 + row // group_size} of {groups}" for row, step in enumerate(rows["step"])]
    return rows


def held_out_answers(run: RunFolder) -> DataFrame:
    """Those after training, in the columns of completions; they have no advantage."""
    rows = []
    for sample in answered(run.samples() or []):
        answer = sample["after"]
        named = {"step": 0, "group": "held out", "prompt": sample["question"], "completion": answer["completion"]}
        rows.append(sample | answer["rewards"] | named)
    return DataFrame(rows).drop(columns=["question", "held_out", "before", "after"], errors="ignore")


def records(rows: DataFrame) -> list[dict]:
    """None where pandas has NaN: a reward does not apply."""
    return rows.astype(object).where(rows.notna(), None).to_dict("records")


def most_different_groups(rows: DataFrame, by: str, count: int) -> list[DataFrame]:
    """Those in which the score differs most, in each the best completion first."""
    groups = rows.groupby("group")
    spread = groups[by].max() - groups[by].min()
    largest = spread.dropna().nlargest(count)
    return [groups.get_group(group).sort_values(by, ascending=False) for group in largest.index]


def worst_completions(rows: DataFrame, by: str, count: int) -> list[DataFrame]:
    """Those with the lowest scores, each for itself.

    Of equal scores those of other groups come first, and of these the latest, which say most of the trained policy.
    """
    rows = rows.dropna(subset=by)
    rows["again"] = rows.groupby(["group", by]).cumcount()
    rows = rows.sort_values([by, "again", "step"], ascending=[True, True, False])
    return [rows.iloc[[place]] for place in range(min(count, len(rows)))]


def show(console: Console, rows: DataFrame, names: list[str]) -> None:
    """Print completions of one group; a column of the data stands above them where they share its value."""
    completions = records(rows)
    first = completions[0]
    console.rule(first["group"], align="left")
    console.print(first["prompt"], style="bold")
    columns = rows.columns.difference([*NOT_OF_THE_DATA, *names], sort=False)
    shared = [column for column in columns if rows[column].astype(str).nunique() == 1]
    for column in shared:
        console.print(f"{column}: {first[column]}")
    for row in completions:
        console.print(f"\n{row['completion']}")
        for column in columns.drop(shared):
            console.print(f"{column}: {row[column]}")
        scores = score_words({name: row[name] for name in names})
        console.print(f"({scores})")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the output_dir of a run")
    parser.add_argument("--step", type=int, help="default: the last one, and all with --worst")
    parser.add_argument("--groups", type=int, default=3, help="how many to show; default: 3")
    parser.add_argument("--worst", metavar="REWARD", help="single completions instead, those with its lowest scores")
    options = parser.parse_args(arguments)
    run = RunFolder(options.folder)
    weights = run.weights()
    number = "*" if options.step is None else f"{options.step:05d}"
    pattern = f"completions/completions_{number}.parquet"  # TRL's
    files = sorted(run.path.glob(pattern))
    if files:
        group_size = run.settings()["training"].get("num_generations", 8)  # upstream's default
        chosen = files if options.worst else files[-1:]
        rows = pd.concat([read_file(file, group_size) for file in chosen], ignore_index=True)
    elif options.worst and options.step is None:
        print("note: no completions were kept; these are the held-out answers after training")
        rows = held_out_answers(run)
    else:
        raise UserError(f"{run}: has no {pattern}; training.log_completions: true keeps them, and --worst does without")

    rows["total"] = pd.Series([total(row, weights) for row in records(rows)], dtype=float)
    names = [name for name in ("total", *weights, "advantage") if name in rows]  # a reward may have lacked its column
    by = options.worst or "total"
    for name in names:
        if short(name) == by:
            by = name
    if by not in names:
        raise UserError(f"{by}: not among the scores that were kept: {', '.join(names)}")
    choose = worst_completions if options.worst else most_different_groups
    chosen = choose(rows, by, options.groups)
    if not chosen:
        raise UserError(f"{by}: applies to no completion that was kept")
    console = Console(width=80, highlight=False, markup=False)
    if options.worst:
        lowest = rows[by].min()
        console.print(f"{(rows[by] == lowest).sum()} of {rows[by].count()} with {lowest:.2f}")
    for group in chosen:
        show(console, group, names)
