"""Windows: means over enough questions, each with its own spread, so that no warning takes chance for a change."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

ENOUGH = (32, 256)  # questions in a window: few show soon what is large, many show what is small
SURE = 4  # standard errors; every log is another look, so that 2 would be chance in most runs
FEW = 4  # questions; the spread within a batch of fewer says little of that between questions


@dataclass
class Window:
    """The mean of a logged figure from step `begin` to `end`, over `questions`, and its standard error."""

    mean: float
    error: float
    questions: float
    begin: int
    end: int

    def most(self) -> bool:
        """Whether a share of the questions is over a half, by Wilson's lower bound of 3 standard errors."""
        share, n, z = self.mean, self.questions, 3
        spread = math.sqrt(share * (1 - share) / n + (z / n) ** 2 / 4)
        return share + z * z / n / 2 - z * spread > (1 + z * z / n) / 2


def window(logs: Iterable[dict[str, Any]], key: str, questions: float, fewest: int = 1) -> Window | None:
    """Of the first of `logs` that hold so many `questions`, and are `fewest` or more; None where there are too few.

    The completions of one question are alike, so that they count once. The spread is the larger of that in a batch, as
    TRL logs it, and of that between the logs.

    Args:
        logs: in either order, each with its `step` and `questions`.
    """
    reward, kind = key.removesuffix("/mean"), key.rpartition("/")[0]
    taken, held = [], 0.0
    for log in logs:
        if log.get(key) is not None:
            taken.append(log)
            held += log["questions"] * log.get(f"{kind}/applies", 1)
            if held >= questions and len(taken) >= fewest:
                break
    else:
        return None
    means = [log[key] for log in taken]
    deviations = [log.get("reward_std" if key == "reward" else f"{reward}/std") or 0 for log in taken]
    within = fmean(deviation**2 for deviation in deviations) / held
    between = variance(means) / len(means) if len(means) > 1 else 0.0
    begin, end = sorted((taken[0]["step"], taken[-1]["step"]))
    return Window(fmean(means), math.sqrt(max(within, between)), held, begin, end)


def fall(logs: list[dict[str, Any]], key: str, share: float, batch: float) -> str | None:
    """`from 0.85 to 0.41, ± 0.07`, where the mean has surely fallen, by over a `share` of its size.

    `batch`: how many questions are sampled at once.
    """
    fewest = 1 if batch >= FEW else 4
    for questions in ENOUGH:
        first, last = window(logs, key, questions, fewest), window(reversed(logs), key, questions, max(2, fewest))
        if first and last and first.end < last.begin:
            fallen, error = first.mean - last.mean, math.hypot(first.error, last.error)
            if fallen > max(abs(first.mean) * share, SURE * error):
                return f"from {first.mean:.2f} to {last.mean:.2f}, ± {error:.2f}"
    return None


def grows(values: list[float]) -> bool:
    """Whether each quarter of them is surely above the one before, and the last over twice the first."""
    size = len(values) // 4
    if size < 3:
        return False
    quarters = [values[i * size : (i + 1) * size] for i in range(4)]
    means, errors = [fmean(part) for part in quarters], [math.sqrt(variance(part) / size) for part in quarters]
    rises = [after - before > error for before, after, error in zip(means, means[1:], errors, strict=False)]
    return all(rises) and means[3] - means[0] > max(means[0], SURE * math.hypot(errors[0], errors[3]))
