"""Print what several runs reached and how they differ, and lay their curves over each other.

python -m harness compare outputs/a outputs/b [...]                   # tables and verdicts
python -m harness compare outputs/a outputs/b -o comparison.png       # and a picture
"""

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pandas import DataFrame, Series, concat
from rich.console import Console
from rich.table import Column, Table
from scipy.special import stdtrit

from harness.after.curves import draw_curves, reward_names
from harness.after.verdict import FEWEST, Interval, Verdict, answered, interval, verdict
from harness.errors import UserError
from harness.reward import short, total
from harness.run_folder import RunFolder, difference, flat

LAST = 20  # steps of which a mean is taken
TOTAL = "weighted total"  # stands among the rewards' names, and no function can have this one
CODE = "rewards.py"
SEEDS = ("training.seed", "training.data_seed")


@dataclass
class Run:
    """What a run has left.

    Args:
        folder: its output_dir.
        state: upstream's TrainerState.
        logs: those of training in it.
        weights: by reward.
        samples: the lines of samples.jsonl that are held out, and answered before and after training.
    """

    folder: RunFolder
    state: dict
    logs: DataFrame
    weights: dict[str, float]
    samples: list[dict]

    def begin_of_last(self) -> int:
        """The step after which the last 20 begin, or a few more where a log is the mean of several; or 0."""
        steps = self.logs["step"]
        earlier = steps[steps <= self.state["global_step"] - LAST]
        return earlier.max() if len(earlier) else 0

    def scores(self, name: str, when: str = "after") -> Series:
        """Of a reward, or the total: by question, without those to which it does not apply."""
        scores = {}
        for sample in self.samples:
            rewards = sample[when]["rewards"]
            scores[sample["question"]] = total(rewards, self.weights) if name == TOTAL else rewards.get(name)
        return Series(scores, dtype=float).dropna()


def read_run(path: Path) -> Run:
    """Raises UserError where the folder holds no run, or where no reward was logged."""
    folder = RunFolder(path)
    state = folder.state()
    samples = folder.samples()
    if samples is None:
        print(f"note: {folder}: has no samples.jsonl, or a damaged one; its answers are left out")
        samples = []
    logs = DataFrame(state["log_history"]).dropna(subset="reward")
    return Run(folder, state, logs, folder.weights(), answered(samples))


def training_table(runs: list[Run], names: list[str]) -> Table:
    """The means of each run's last 20 steps, or of all where it has no more."""
    table = _table("Training", runs)
    table.add_row("means of", *map(_steps, runs))
    for name in names:
        key = "reward" if name == TOTAL else f"rewards/{name}/mean"
        table.add_row(short(name), *[_mean(run, key) for run in runs])
    table.add_row("characters", *[_mean(run, "completions/mean_characters") for run in runs])
    table.add_row("KL", *[_mean(run, "kl") for run in runs])
    table.add_row("minutes", *map(_minutes, runs))
    return table


def held_out_table(runs: list[Run], names: list[str]) -> Table:
    """The means of the held-out questions after training."""
    table = _table("Held-out questions after training, with 95% intervals", runs)
    for name in names:
        seen = concat([run.scores(name, when) for run in runs for when in ("before", "after")])
        low = min(0, seen.min())
        high = max(0, seen.max())
        cells = []
        for run in runs:
            scores = run.scores(name)
            cells.append("–" if scores.empty else str(level(scores, low, high)).lstrip("+"))
        table.add_row(short(name), *cells)
    return table


def difference_table(first: Run, others: list[Run], names: list[str]) -> Table:
    """How much more than the first run the others score, on the held-out questions that both have answered."""
    table = _table(f"Held-out questions, the difference from {first.folder}", others)
    table.add_row("questions", *[_questions(first, other) for other in others])
    for name in names:
        scores = first.scores(name)
        table.add_row(short(name), *[_difference(scores, other.scores(name)) for other in others])
    return table


def verdict_of(folder: RunFolder, samples: list[dict]) -> str:
    """The verdict on a finished run, in a line, from its held-out samples."""
    line = _verdict(folder, samples).line
    return f"placebo: {line}" if folder.is_placebo() else line


def lines_of_seeds(runs: list[Run]) -> list[str]:
    """Of runs that differ by their seed alone: `3 seeds (outputs/a, ...): emoji +3.71 (3.55 to 3.87), ...`.

    These are the changes over the runs. Placebos have a line of their own, and one by how much more than they the runs
    with the same settings have changed.
    """
    sets = {}  # by settings, and whether they are placebos: by seeds, the changes of each run
    for run in runs:
        settings = _settings(run)
        seeds = [settings.pop(key, None) for key in SEEDS]
        placebo = settings.pop("--placebo")
        settings.pop("training.run_name", None)
        means = {change.name: change.change.mean for change in _verdict(run.folder, run.samples).changes}
        alike = sets.setdefault((str(sorted(settings.items())), placebo), {})
        alike[str(seeds)] = Series(means, name=str(run.folder))  # the same run again counts once
    frames = {key: DataFrame(list(alike.values())) for key, alike in sets.items()}
    lines = []
    for (settings, placebo), changes in frames.items():
        if len(changes) < 2:
            continue
        kind = "placebos" if placebo else "seeds"
        lines.append(f"{len(changes)} {kind} ({changes.index[0]}, ...): {_over_runs(changes)}")
        by_chance = frames.get((settings, True), ())
        if len(by_chance) > 1 and not placebo:
            lines.append(f"more than {len(by_chance)} placebos: {_over_runs(changes, by_chance)}")
    return lines


def settings_table(runs: list[Run]) -> Table:
    """The settings that are not the same in all runs, and rewards.py where it is not."""
    table = _table("What differs", runs)
    settings = [_settings(run) for run in runs]
    for key in sorted(set().union(*settings)):
        values = [each.get(key) for each in settings]
        cells = ["–" if value is None else str(value) for value in values]
        if len(set(cells)) == 1:
            continue
        if key == CODE:
            cells = [difference(cells[0], cell) for cell in cells]
        table.add_row(key, *cells)
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="+", type=Path, help="the output_dir of a run")
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help="draw the curves into this file")
    options = parser.parse_args(arguments)
    png = options.output
    if png and (png.suffix != ".png" or not png.absolute().parent.is_dir()):
        raise UserError(f"-o {png}: name a .png file in a folder that is there")
    runs = [read_run(path) for path in dict.fromkeys(options.folder)]
    logs = {str(run.folder): run.state["log_history"] for run in runs}
    names = reward_names(logs)
    weights = runs[0].weights
    if all(run.weights == weights for run in runs):
        names.append(TOTAL)
    else:
        weights = {}

    console = Console(markup=False, highlight=False)  # code of a reward may look like markup
    console.print(training_table(runs, names))
    console.print(held_out_table(runs, names))
    if len(runs) > 1:
        console.print(difference_table(runs[0], runs[1:], names))
    for run in runs:
        console.print(f"{run.folder}: {verdict_of(run.folder, run.samples)}")
    for line in lines_of_seeds(runs):
        console.print(line)
    differing = settings_table(runs)
    if differing.rows:
        console.print(differing)
    if png:
        draw_curves(logs, weights, png)
        print(f"curves: {png}")


def level(scores: Series, low: float, high: float) -> Interval:
    """The mean of scores from `low` to `high`, and its 95% interval, which stays between them.

    Wilson's for a share, with as many questions as make a share vary as these scores do; benchmarks/verdict.py has how
    often it holds the mean.
    """
    count = len(scores)
    mean = scores.mean()
    if count < FEWEST:
        return Interval(mean, -np.inf, np.inf)
    spread = 1.0  # of the scores, as a part of what it is of a share; of equal scores that is not known
    if np.ptp(scores) > 0:
        spread = scores.var() / ((mean - low) * (high - mean))
    # Its ends are the means that lie as many of their own standard errors away: a quadratic equation.
    errors = spread * stdtrit(count - 1, 0.975) ** 2 / count
    ends = np.roots([1 + errors, -2 * mean - errors * (low + high), mean**2 + errors * low * high])
    return Interval(mean, *sorted(ends.real.round(12)))


# ---- tables, and what stands in their cells


def _table(title: str, runs: list[Run]) -> Table:
    """A column for each run and a row for each reward, as there may be more rewards than runs."""
    table = Table(Column("", no_wrap=True), title=title, title_justify="left")
    names = [run.folder.path.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _steps(run: Run) -> str:
    end = run.state["global_step"]
    begin = run.begin_of_last()
    if begin == 0:
        return f"{end} steps"
    return f"last {end - begin} of {end}"


def _mean(run: Run, key: str) -> str:
    """Over the logs of its last steps."""
    last = run.logs[run.logs["step"] > run.begin_of_last()]
    mean = last[key].astype(float).mean() if key in last else np.nan
    return "–" if np.isnan(mean) else f"{mean:.2f}"


def _minutes(run: Run) -> str:
    """By the report, which knows the time before a resume too."""
    report = run.state["stateful_callbacks"]["Report"]
    return f"{report['attributes']['seconds'] / 60:.1f}"


def _questions(first: Run, other: Run) -> str:
    same = {sample["question"] for sample in first.samples} & {sample["question"] for sample in other.samples}
    return f"{len(same)}, paired" if same else "different"


def _difference(first: Series, other: Series) -> str:
    """Of one reward, over the questions that both runs have."""
    pairs = DataFrame({"first": first, "other": other}).dropna()
    if pairs.empty:
        return "–"
    return str(interval(pairs["other"] - pairs["first"], pairs))


def _verdict(folder: RunFolder, samples: list[dict]) -> Verdict:
    asked = samples[0]["after"]["rewards"] if samples else {}  # a reward that lacked its column was left out
    weights = {name: weight for name, weight in folder.weights().items() if name in asked}
    return verdict(samples, weights)


def _settings(run: Run) -> dict:
    """By dotted key, without its folder; as if they were such, whether it is a placebo and its rewards.py."""
    code = run.folder.rewards_file.read_text(encoding="utf-8")
    settings = flat(run.folder.settings()) | {"--placebo": run.folder.is_placebo(), CODE: code}
    settings.pop("training.output_dir", None)
    return settings


def _over_runs(changes: DataFrame, by_chance: DataFrame | None = None) -> str:
    """Each reward's mean change, of one row per run, and its 95% interval over the runs by Student's t.

    Given placebos, the difference to these by Welch's t, as they need not vary as the runs do.
    """
    from scipy.stats import ttest_1samp, ttest_ind  # half a second

    with warnings.catch_warnings(action="ignore"):  # where all runs are alike
        test = ttest_1samp(changes, 0) if by_chance is None else ttest_ind(changes, by_chance, equal_var=False)
    parts = []
    for name, low, high in zip(changes, *test.confidence_interval(), strict=True):
        mean = (low + high) / 2
        change = Interval(mean, low, high)
        if np.isclose(low, high):  # then it is not known how much they vary
            change = f"{mean:+.2f} (all alike, so no interval)"
        parts.append(f"{name} {change}")
    return ", ".join(parts)
