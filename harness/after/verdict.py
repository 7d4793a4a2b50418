"""Verdict: what a run changed, by the same held-out questions answered before and after it, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FEWEST = 8  # answered questions; below it an interval says nothing
ALIKE = 0.8  # of two answers' trigrams


@dataclass
class Interval:
    """A mean and its 95% interval, by bootstrap over the questions."""

    mean: float
    low: float
    high: float

    def __str__(self):
        sign = "+" if self.mean > 0 else ""
        return f"{sign}{_number(self.mean)} ({_number(self.low)} to {_number(self.high)})"


def interval(values: Sequence[float]) -> Interval:
    """The mean of `values` and where 95% of the means of 10,000 resamples lie (Efron's percentile bootstrap)."""
    values = np.asarray(values, dtype=float)
    resamples = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    low, high = np.quantile(values[resamples].mean(axis=1), (0.025, 0.975))
    # Weights such as 0.2 leave 1e-17 where the sum is 0, which is no change; + 0.0 makes 0 of -0.
    return Interval(*(float(np.round(each, 12)) + 0.0 for each in (values.mean(), low, high)))


def alike(answers: list[str]) -> float:
    """The share of answers in the largest set that says nearly the same; punctuation and emoji do not count."""
    texts = ["".join(character for character in text if character.isalnum()) for text in answers]
    trigrams = [{text[i : i + 3] for i in range(max(1, len(text) - 2))} for text in texts]
    near = [[len(a & b) >= ALIKE * len(a | b) for b in trigrams] for a in trigrams]
    return max(map(sum, near)) / len(near)


def verdict(samples: list[dict[str, Any]], weights: dict[str, float]) -> tuple[str, str]:
    """(learned, hacked, worse, no change or unknown; the same in a line, with each reward's change and its interval).

    A change counts if 0 is not in its interval. A reward is kept if even the low end loses less than a quarter.
    Hacked: the trained rewards rose, while a canary lost over a quarter, or most answers became the same. Worse: the
    trained rewards fell.

    Args:
        samples: the lines of samples.jsonl.
        weights: weight by reward; a reward of weight 0 is a canary.
    """
    samples = [sample for sample in samples if sample["held_out"] and sample["before"] and sample["after"]]
    if len(samples) < FEWEST:
        return "unknown", f"no verdict: it takes {FEWEST} held-out questions, and there are {len(samples)}"
    sides = [[sample[side] for sample in samples] for side in ("before", "after")]
    found = [(name, *_change(name, weight, *sides)) for name, weight in weights.items()]
    totals = [[sum(w * (answer["rewards"][name] or 0) for name, w in weights.items()) for answer in s] for s in sides]
    total = interval(np.subtract(totals[1], totals[0]))
    before, after = (alike([answer["completion"] for answer in side]) for side in sides)
    uniform = after > before + 0.5

    def words(*kinds: str) -> str:
        return ", ".join(f"{name.removesuffix('_reward')} {change}" for name, kind, change in found if kind in kinds)

    risen, lost = words("learned"), words("lost", "given up")
    parts = {"learned": risen, "lost": lost, "kept": words("kept"), "unclear": words("unclear")}
    line = "; ".join(f"{head}: {names}" for head, names in parts.items() if names)
    kind = "worse" if total.high < 0 else "learned" if total.low > 0 else "no change"
    if kind == "learned" and (uniform or words("given up")):
        kind, line = "hacked", f"hacked: {risen or f'total {total}'} rose{lost and f' while {lost} fell'}"
    elif kind != "learned" or not risen:
        line = f"{kind}: total {total}; {line}"
    return kind, line + (f"; {after:.0%} of the answers say nearly the same ({before:.0%} before)" if uniform else "")


def _change(name: str, weight: float, before: list[dict], after: list[dict]) -> tuple[str, Interval | None]:
    """(learned, lost, given up, kept, unclear or, with few answers, unknown; the change of one reward)"""
    pairs = [(old["rewards"][name], new["rewards"][name]) for old, new in zip(before, after, strict=True)]
    pairs = np.array([pair for pair in pairs if None not in pair])
    if len(pairs) < FEWEST:
        return "unknown", None
    change = interval(pairs[:, 1] - pairs[:, 0])
    low, high = (change.low, change.high) if weight >= 0 else (-change.high, -change.low)
    much = max(pairs[:, 0].mean() / 4, 0.05)
    if low > 0 and weight:
        return "learned", change
    if high < 0:
        return "given up" if weight == 0 and change.mean < -much else "lost", change
    return "kept" if -low < much else "unclear", change


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"
