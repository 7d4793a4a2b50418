"""Verdict: what a run changed, by the same held-out questions answered before and after it, and how sure that is.

This module imports no torch, so that `compare` is quick.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from scipy.special import stdtrit

from harness.errors import counted
from harness.keys import FEWEST
from harness.reward import given_up, short, total

Sample = dict[str, Any]  # a line of samples.jsonl

ALIKE = 0.8  # of all trigrams of two answers are in both
MANY_MORE = 0.5  # of the answers say nearly the same, beyond those that did before
FEW_STEPS = 50  # the demo needs as many for its emoji (benchmarks/README.md)
HARDLY = 0.01  # nats per token of KL
WORDS = {  # of one reward; the whole verdict begins with that of the weighted total, or with hacked
    "learned": "it rose: all of the interval lies above 0",
    "lost": "it fell: all of the interval lies below 0",
    "unchanged": "the interval contains 0, and lies within a quarter of the score before, either way",
    "unclear": "the interval contains 0, and is wider; more held-out questions make it narrower",
    "hacked": "the trained rewards rose, while one of weight 0 lost over a quarter or most answers became the same",
}


@dataclass
class Interval:
    """A mean over the questions and its 95% interval; infinitely wide where there are fewer than FEWEST."""

    mean: float
    low: float
    high: float

    def __str__(self):
        mean = number(self.mean)
        if self.mean > 0:
            mean = f"+{mean}"
        if np.isinf(self.low):
            return f"{mean} (too few for an interval)"
        return f"{mean} ({number(self.low)} to {number(self.high)})"


def interval(values: Sequence[float], scores: Any = None) -> Interval:
    """The mean of `values` and its interval by Student's t, which a simulation of rewards chose: benchmarks/verdict.py.

    Args:
        values: one per question.
        scores: from which the values were made, in any shape, if they are differences.
    """
    values = np.asarray(values, dtype=float).round(12)  # differences that are equal differ in their last digits
    mean = values.mean().round(12)
    count = len(values)
    if count < FEWEST:
        return Interval(float(mean), -np.inf, np.inf)
    seen = values if scores is None else scores
    span = np.ptp([0, *np.ravel(seen)])  # no score was seen farther from another, or from 0: no end lies farther out
    if np.ptp(values) > 0:
        half = stdtrit(count - 1, 0.975) * values.std(ddof=1) / count**0.5
    else:
        half = 3 / count * span  # the rule of three: 3 of n questions may be otherwise
        if mean:  # all changed alike: the interval is not to reach 0
            half = min(half, abs(mean) / 2)
    low, high = np.clip([mean - half, mean + half], -span, span).round(12)
    return Interval(float(mean), float(low), float(high))


@dataclass
class Change:
    """What has become of one reward, or of the total, from before the run to after it.

    `word`: one of WORDS, but not hacked. `before`, `after`: means.
    """

    name: str
    weight: float
    word: str
    before: float
    after: float
    change: Interval

    def __str__(self):
        return f"{self.name} {self.change}"


@dataclass
class Verdict:
    """`word`: one of WORDS, or unknown. `line`: the last of a run, with each reward's change and its interval."""

    word: str
    line: str
    changes: list[Change] = field(default_factory=list)
    total: Change | None = None

    def explained(self) -> dict[str, str]:
        """Those of WORDS that it uses."""
        used = {self.word, *(change.word for change in self.changes)}
        return {word: meaning for word, meaning in WORDS.items() if word in used}


def answered(samples: list[Sample]) -> list[Sample]:
    """Of the lines of samples.jsonl those on which a verdict rests: held out, and answered before and after."""
    return [sample for sample in samples if sample["held_out"] and sample["before"] and sample["after"]]


def verdict(samples: list[Sample], weights: dict[str, float]) -> Verdict:
    """What the rewards, and their weighted total, say of these samples; WORDS has what each word means.

    Args:
        samples: the lines of samples.jsonl.
        weights: weight by reward; a reward of weight 0 is a canary.
    """
    samples = answered(samples)
    if len(samples) < FEWEST:
        return Verdict("unknown", f"no verdict: {counted(len(samples), 'held-out question')}, and it takes {FEWEST}")
    before = [sample["before"] for sample in samples]
    after = [sample["after"] for sample in samples]
    changes = []
    seldom = []  # rewards that scored too few answers
    for name, weight in weights.items():
        old = [answer["rewards"][name] for answer in before]
        new = [answer["rewards"][name] for answer in after]
        change = _change(short(name), weight, old, new)
        if change:
            changes.append(change)
        else:
            seldom.append(short(name))
    totals_before = [total(answer["rewards"], weights) for answer in before]
    totals_after = [total(answer["rewards"], weights) for answer in after]
    in_total = _change("total", 1, totals_before, totals_after)
    if in_total is None:
        return Verdict("unknown", f"no verdict: the rewards applied to fewer than {FEWEST} answers")

    texts_before = [answer["completion"] for answer in before]
    texts_after = [answer["completion"] for answer in after]
    if texts_before == texts_after:
        for change in [*changes, in_total]:
            change.word = "unchanged"
        line = f"unchanged in this run: all {len(samples)} answers are as before"
        return Verdict("unchanged", line, changes, in_total)
    alike_before = alike(texts_before)
    alike_after = alike(texts_after)
    uniform = alike_after > alike_before + MANY_MORE
    word = in_total.word
    if word == "learned" and (uniform or any(_is_given_up(change) for change in changes)):
        word = "hacked"
    line = _line(word, in_total, changes)
    if uniform:
        line += f"; {alike_after:.0%} of the answers say nearly the same ({alike_before:.0%} before)"
    if seldom:
        line += f"; applied to fewer than {FEWEST} answers: {', '.join(seldom)}"
    return Verdict(word, line, changes, in_total)


def _change(name: str, weight: float, before: list[float | None], after: list[float | None]) -> Change | None:
    """One reward's; None where it has scored too few of the answers."""
    pairs = [pair for pair in zip(before, after, strict=True) if None not in pair]
    if len(pairs) < FEWEST:
        return None
    scores = np.array(pairs, dtype=float)  # (questions, 2)
    old = scores[:, 0]
    new = scores[:, 1]
    change = interval(new - old, scores)
    word = _word_of_a_reward(weight, change, old.mean())
    return Change(name, weight, word, float(old.mean()), float(new.mean()), change)


def _word_of_a_reward(weight: float, change: Interval, before: float) -> str:
    """`before`: its mean then."""
    low = change.low
    high = change.high
    if weight < 0:  # the fewer the better
        low, high = -high, -low
    if high < 0:
        return "lost"
    if low > 0:
        return "learned"
    quarter = abs(before) / 4
    if -quarter <= low and high <= quarter:
        return "unchanged"
    return "unclear"


def _is_given_up(change: Change) -> bool:
    mean = change.change.mean
    half_of_interval = change.change.high - mean
    return change.weight == 0 and given_up(change.before, -mean, half_of_interval)


def _line(word: str, in_total: Change, changes: list[Change]) -> str:
    """`learned in this run: emoji +3.73 (3.57 to 3.90); lost: ...`: the rewards by their words, those of `word` first.

    The total stands for the trained rewards where none of them has the total's word.
    """
    by_word: dict[str, list[str]] = {each: [] for each in WORDS}
    if not any(change.weight and change.word == in_total.word for change in changes):
        by_word[in_total.word].append(str(in_total))
    for change in changes:
        by_word[change.word].append(str(change))
    if word == "hacked":
        line = f"hacked in this run: {', '.join(by_word['learned'])} rose"
        if by_word["lost"]:
            line += f" while {', '.join(by_word['lost'])} fell"
        return line
    line = f"{word} in this run: {', '.join(by_word.pop(word))}"
    for each, rewards in by_word.items():
        if rewards:
            line += f"; {each}: {', '.join(rewards)}"
    return line


def alike(answers: list[str]) -> float:
    """The share of answers in the largest set that says nearly the same; punctuation and emoji do not count."""
    trigrams = [_trigrams(answer) for answer in answers]
    largest = 0
    for one in trigrams:
        near = sum(len(one & other) >= ALIKE * len(one | other) for other in trigrams)
        largest = max(largest, near)
    return largest / len(answers)


def _trigrams(text: str) -> set[str]:
    letters = "".join(character for character in text if character.isalnum())
    if len(letters) < 3:
        return {letters}
    return {letters[i : i + 3] for i in range(len(letters) - 2)}


def likely_reason(
    history: list[dict[str, Any]], steps: int, moved: bool, too_slow: list[str], trained: Sequence[str] = ()
) -> str:
    """The likeliest reason, of those that a run's log tells, why it has learned nothing; or nothing.

    Args:
        history: `log_history` of `trainer_state.json`.
        steps: optimizer steps taken.
        moved: whether any weight is another one than before.
        too_slow: the plan's doubts about the size of a step.
        trained: the rewards that have a weight.
    """
    logs = [log for log in history if "frac_reward_zero_std" in log]  # TRL's, of the weighted sum
    flat = fmean(log["frac_reward_zero_std"] for log in logs) if logs else 0.0
    kl = logs[-1].get("kl") if logs else None
    if flat > 0.5:
        return f"zero reward variance in {flat:.0%} of the groups"
    if too_slow:
        return too_slow[0]
    if not moved:
        return "no step has moved a weight; see learning_rate and model.dtype"
    for name in trained:
        flat = fmean(log.get(f"rewards/{name}/flat_groups", 0.0) for log in logs or [{}])
        if flat > 0.9:
            return f"zero variance of {name} in {flat:.0%} of the groups"
    few = steps < FEW_STEPS
    hardly = HARDLY / 10 if few else HARDLY
    if kl and kl < hardly:  # with beta 0 there is none, or it is 0
        return f"the policy has hardly moved (KL {kl:.2g} per token): learning_rate is low"
    if few:
        return f"only {counted(steps, 'step')}"
    return ""


def number(value: float) -> str:
    if value == 0:
        return "0.00"  # not -0.00
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
