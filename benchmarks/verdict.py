"""How often the verdict is wrong, by simulation: `python benchmarks/verdict.py`, 12 minutes beside other work.

False rise or fall: of a policy that a run has not changed, so that before and after are two samples of the same
answers. False unchanged: of a canary that has lost a third of its right answers. In % of the simulated runs, by the
number of held-out questions. Level: how often the interval of `compare`'s table of levels holds the mean of all
answers, and how often Student's t does.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pandas import Series

sys.path.insert(0, str(Path(__file__).parent.parent))
from harness.after.verdict import Interval, interval, verdict  # noqa: E402
from harness.tools.compare import level  # noqa: E402

random = np.random.default_rng(1)
QUESTIONS = (8, 16, 32, 64)


def continuous(n: int) -> np.ndarray:
    """(2, n) scores, before and after; as are those of the functions below."""
    return random.normal(size=n) + random.normal(size=(2, n))


def length(n: int) -> np.ndarray:
    """config.yaml's length_reward, of answers of 25 characters give or take 8, half of which the question decides."""
    characters = 25 + random.normal(scale=5.7, size=n) + random.normal(scale=5.7, size=(2, n))
    return np.exp(-0.15 * abs(characters.round() - 30))


def right(share: float) -> Callable[[int], np.ndarray]:
    """1 or 0; some questions are easier than others."""
    return lambda n: random.binomial(1, random.beta(4 * share, 4 * (1 - share), n), size=(2, n)).astype(float)


def emoji(n: int) -> np.ndarray:
    """As the untrained demo has them: over two thirds of the answers have none."""
    return random.choice(5, (2, n), p=[0.7, 0.2, 0.06, 0.03, 0.01]).astype(float)


def skewed(n: int) -> np.ndarray:
    """Not the same policy, but the same mean: 0.4 of the answers with one emoji, then a tenth with four."""
    return np.array([random.binomial(1, 0.4, n), 4.0 * random.binomial(1, 0.1, n)])


UNCHANGED = {
    "continuous": continuous,
    "length_reward": length,
    "0 or 1, half of them right": right(0.5),
    "0 or 1, 85% right": right(0.85),
    "heavily tied (emoji)": emoji,
    "another policy, skewed, of the same mean": skewed,
}


LEVELS = {  # scores of n answers, and the highest that there is
    **{
        f"0 or 1, {share:.0%} right": (lambda n, share=share: random.binomial(1, share, n), 1)
        for share in (0.5, 0.2, 0.95)
    },
    "all right": (np.ones, 1),
    "length_reward": (lambda n: length(n)[0], 1),
    "emoji, most answers none": (lambda n: emoji(n)[0], 4),
    "emoji, 90% of the answers four": (lambda n: random.choice(5, n, p=[0, 0, 0.02, 0.08, 0.9]), 4),
    "emoji, 95% four and 2% none": (lambda n: random.choice(5, n, p=[0.02, 0, 0, 0.03, 0.95]), 4),
}


def bootstrap(differences: np.ndarray) -> bool:
    """Whether Efron's percentile bootstrap, which the verdict had before, sees a rise or fall."""
    resamples = random.integers(len(differences), size=(2_000, len(differences)))
    low, high = np.quantile(differences[resamples].mean(axis=1), (0.025, 0.975))
    return low > 0 or high < 0


def changed(scores: np.ndarray) -> bool:
    found = interval(scores[1] - scores[0], scores)
    return found.low > 0 or found.high < 0


def canary(before: np.ndarray, after: np.ndarray) -> str:
    """What the verdict says of it, beside a trained reward."""
    samples = [{"held_out": True, "before": {"completion": "a"}, "after": {"completion": "b"}} for _ in before]
    for side, scores in (("before", before), ("after", after)):
        for sample, score in zip(samples, scores, strict=True):
            sample[side]["rewards"] = {"trained": 0.0, "canary": score}
    return next(change.word for change in verdict(samples, {"trained": 1, "canary": 0}).changes if not change.weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=4_000)
    times = parser.parse_args().simulations
    print(f"| {times:,} simulations, % | {' | '.join(f'{n} questions' for n in QUESTIONS)} |\n|---|{'---|' * 4}")

    def row(name: str, wrong: Callable[[int], bool]) -> None:
        shares = [np.mean([wrong(n) for _ in range(times)]) for n in QUESTIONS]
        print(f"| {name} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |", flush=True)

    for name, drawn in UNCHANGED.items():
        row(f"false rise or fall: {name}", lambda n, drawn=drawn: changed(drawn(n)))
        row("the same by bootstrap", lambda n, drawn=drawn: bootstrap(np.subtract(*drawn(n))))
    for share in (1, 0.85, 0.5, 0.3):

        def kept(n: int, lost: float, share: float = share) -> bool:
            before = random.binomial(1, share, n).astype(float)
            return canary(before, before * random.binomial(1, 1 - lost, n)) == "unchanged"

        row(f"false unchanged: {share:.0%} right, a third of them lost", lambda n, kept=kept: kept(n, 1 / 3))
        row(f"rightly unchanged: {share:.0%} right, none lost", lambda n, kept=kept: kept(n, 0))
    for name, (drawn, most) in LEVELS.items():
        mean = drawn(10**6).mean()

        def holds(found: Interval, mean: float = mean) -> bool:
            return found.low - 1e-9 <= mean <= found.high + 1e-9

        def by_t(n: int, drawn: Callable = drawn, holds: Callable = holds) -> bool:
            return holds(interval(drawn(n)))

        def by_level(n: int, drawn: Callable = drawn, most: int = most, holds: Callable = holds) -> bool:
            return holds(level(Series(drawn(n)), 0, most))

        row(f"level: {name}", by_level)
        row("the same by Student's t", by_t)


if __name__ == "__main__":
    main()
