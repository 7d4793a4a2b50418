"""Verdict: what a run changed, by the same held-out questions answered before and after it, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.reward import given_up

FEWEST = 8  # answered questions; below it an interval says nothing
ALIKE = 0.8  # of two answers' trigrams
FEW_STEPS = 50  # the demo needs as many for its emoji (benchmarks/README.md)
HARDLY = 0.01  # nats a token of KL
OF_A_REWARD = ("learned", "lost", "not learned", "kept", "unclear")
WORDS = {  # of a reward of the run, and the first of the whole verdict, which goes by the weighted total
    "learned": "it rose: all of the interval lies above 0",
    "lost": "it fell: all of the interval lies below 0",
    "not learned": "if it rose, then by less than half of the spread that its scores had before the run",
    "kept": "a reward of weight 0, which has lost less than a quarter, if anything",
    "unclear": "the interval is too wide to tell; more held-out questions make it narrower",
    "hacked": "the trained rewards rose, while one of weight 0 lost over a quarter or most answers became the same",
    "worse": "the weighted total of the trained rewards fell",
    "mixed": "some reward rose or fell, but the weighted total cannot be told from what it was",
    "no change": "each answer is, word for word, what it was before the run",
}


@dataclass
class Interval:
    """A mean over the questions and its 95% interval; infinitely wide where there are fewer than FEWEST."""

    mean: float
    low: float
    high: float

    def __str__(self):
        around = f"{number(self.low)} to {number(self.high)}" if np.isfinite(self.low) else "too few for an interval"
        return f"{'+' if self.mean > 0 else ''}{number(self.mean)} ({around})"


def interval(values: Sequence[float], scores: Any = None) -> Interval:
    """The mean of `values` and its interval by Student's t, which a simulation of rewards chose: benchmarks/verdict.py.

    Args:
        values: one a question.
        scores: from which the values were made, in any shape, if they are differences.
    """
    values = np.asarray(values, dtype=float).round(12)  # differences that are equal differ in their last digits
    return _student(values.mean(), [values], values if scores is None else scores)


def interval_between(first: Sequence[float], second: Sequence[float]) -> Interval:
    """How much larger the mean of `second` is, whose questions are other ones: by Welch's t (Biometrika 34, 1947)."""
    samples = [np.asarray(values, dtype=float) for values in (first, second)]
    return _student(samples[1].mean() - samples[0].mean(), samples, np.concatenate(samples))


def _student(mean: float, samples: list[np.ndarray], scores: Any) -> Interval:
    """Around `mean`, and no farther than a score can lie from another or from 0, as far as the scores tell."""
    fewest, span = min(map(len, samples)), np.ptp([0, *np.ravel(scores)])
    if fewest < FEWEST:
        return Interval(float(mean), -np.inf, np.inf)
    if any(map(np.ptp, samples)):
        variances = [values.var(ddof=1) / len(values) for values in samples]
        freedoms = [variance**2 / (len(values) - 1) for variance, values in zip(variances, samples, strict=True)]
        half = _t(sum(variances) ** 2 / sum(freedoms)) * sum(variances) ** 0.5
    else:  # the rule of three: 3 of n questions may be otherwise; but not so much that a mean of all would be none
        half = min(3 / fewest * span, abs(mean) / 2 or np.inf)
    low, high = np.clip((mean - half, mean + half), -span, span)
    return Interval(*(float(each.round(12)) for each in (mean, low, high)))


def _t(freedom: float) -> float:
    """The 97.5% quantile of Student's t, within 0.001 from 7 degrees of freedom on (Abramowitz and Stegun, 26.7.5)."""
    z = 1.959964
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


@dataclass
class Change:
    """What has become of one reward, or of the total, from before the run to after it.

    `word`: one of OF_A_REWARD. `before`, `after`: means; `better`, `worse`: on how many questions.
    """

    name: str
    weight: float
    word: str
    before: float
    after: float
    change: Interval
    better: int
    worse: int

    def __str__(self):
        return f"{self.name} {self.change}"


@dataclass
class Verdict:
    """`word`: one of WORDS, or unknown; the same in a line, with each reward's change and its interval."""

    word: str
    line: str
    changes: list[Change] = field(default_factory=list)
    total: Change | None = None

    def explained(self) -> dict[str, str]:
        """Those of WORDS that it uses."""
        used = {self.word, *(change.word for change in self.changes)}
        return {word: meaning for word, meaning in WORDS.items() if word in used}


def alike(answers: list[str]) -> float:
    """The share of answers in the largest set that says nearly the same; punctuation and emoji do not count."""
    texts = ["".join(character for character in text if character.isalnum()) for text in answers]
    trigrams = [{text[i : i + 3] for i in range(max(1, len(text) - 2))} for text in texts]
    near = [[len(a & b) >= ALIKE * len(a | b) for b in trigrams] for a in trigrams]
    return max(map(sum, near)) / len(near)


def verdict(samples: list[dict[str, Any]], weights: dict[str, float]) -> Verdict:
    """What the rewards, and their weighted total, say of these samples; WORDS has what each word means.

    Args:
        samples: the lines of samples.jsonl.
        weights: weight by reward; a reward of weight 0 is a canary.
    """
    samples = [sample for sample in samples if sample["held_out"] and sample["before"] and sample["after"]]
    if len(samples) < FEWEST:
        return Verdict("unknown", f"no verdict: it takes {FEWEST} held-out questions, and there are {len(samples)}")
    sides = [[sample[side] for sample in samples] for side in ("before", "after")]
    scores = {name: [[answer["rewards"][name] for answer in side] for side in sides] for name in weights}
    found = [_change(name, weight, *scores[name]) for name, weight in weights.items()]
    changes = [change for change in found if change]
    total = _change(
        "total", 1, *([sum(w * (a["rewards"][n] or 0) for n, w in weights.items()) for a in s] for s in sides)
    )
    texts = [[answer["completion"] for answer in side] for side in sides]
    if texts[0] == texts[1]:
        return Verdict("no change", f"no change: all {len(samples)} answers are as before", changes, total)
    before, after = map(alike, texts)
    uniform = after > before + 0.5
    lost = [c for c in changes if not c.weight and given_up(c.before, -c.change.mean, c.change.high - c.change.mean)]
    parts = {word: ", ".join(map(str, filter(lambda change: change.word == word, changes))) for word in OF_A_REWARD}
    parts = {word: rewards for word, rewards in parts.items() if rewards}
    moved = {change.word for change in changes if change.weight} & {"learned", "lost"}
    word = {"learned": "learned", "lost": "worse"}.get(total.word, "mixed" if moved else total.word)
    line = "; ".join(f"{each}: {parts[each]}" for each in sorted(parts, key=lambda each: each != word))
    if word == "learned" and (uniform or lost):
        word, lost = "hacked", parts.get("lost")
        line = f"hacked: {parts.get('learned') or total} rose{f' while {lost} fell' if lost else ''}"
    elif word not in parts:
        line = f"{word}: {total}; {line}"
    line += f"; {after:.0%} of the answers say nearly the same ({before:.0%} before)" if uniform else ""
    return Verdict(word, line, changes, total)


def likely_reason(history: list[dict[str, Any]], steps: int, moved: bool, too_slow: list[str]) -> str:
    """The likeliest reason, of those that a run's log tells, why it has learned nothing; or nothing.

    Args:
        history: `log_history` of `trainer_state.json`.
        steps: optimizer steps taken.
        moved: whether any weight is another one than before.
        too_slow: the plan's doubts about the size of a step.
    """
    logs = [log for log in history if "frac_reward_zero_std" in log]  # TRL's, of the weighted sum
    flat = sum(log["frac_reward_zero_std"] for log in logs) / max(1, len(logs))
    kl = logs[-1].get("kl") if logs else None
    reasons = {
        "no step has moved a weight": not moved,
        f"in {flat:.0%} of the groups all completions scored alike": flat > 0.5,
        **dict.fromkeys(too_slow, True),
        f"{steps} steps are few": steps < FEW_STEPS,
        f"the policy has hardly moved (KL {kl or 0:.2g} a token): learning_rate is low": (kl or 1) < HARDLY,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _change(name: str, weight: float, before: list[float | None], after: list[float | None]) -> Change | None:
    """One reward's; None where it has scored too few of the answers."""
    pairs = np.array([pair for pair in zip(before, after, strict=True) if None not in pair], dtype=float)
    if len(pairs) < FEWEST:
        return None
    differences = np.diff(pairs).ravel().round(12)
    change, sign = interval(differences, pairs), -1 if weight < 0 else 1
    low, high = sorted((sign * change.low, sign * change.high))
    if low > 0 and weight:
        word = "learned"
    elif high < 0:
        word = "lost"
    elif weight:
        constant = np.ptp(pairs) == 0  # it tells no answer from another
        word = "not learned" if constant or high <= pairs[:, 0].std() / 2 else "unclear"
    else:
        word = "kept" if -low < abs(pairs[:, 0].mean()) / 4 else "unclear"
    better, worse = (int((sign * differences * side > 0).sum()) for side in (1, -1))
    return Change(name.removesuffix("_reward"), weight, word, *pairs.mean(axis=0).tolist(), change, better, worse)


def number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"
