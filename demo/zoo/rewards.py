"""The zoo's rewards and their canaries: each reward sounds like a good idea, and pays for something else (docs/zoo.md).

Those of the repository's own rewards.py, which stays as it is, are the article's.
"""

import math
import re


def length_reward(completions, target_length: int = 30, alpha: float = 0.15, **kwargs) -> list[float]:
    """exp(-alpha * |characters - target_length|), as in the article: 1 at the target."""
    return [math.exp(-alpha * abs(len(text) - target_length)) for text in _texts(completions)]


def once_reward(completions, **kwargs) -> list[float]:
    """The share of three characters in a row that are there for the first time: 1 where nothing is said twice."""
    threes = [[text[i : i + 3] for i in range(len(text) - 2)] for text in _texts(completions)]
    return [len(set(each)) / len(each) if each else 1.0 for each in threes]


def figures_reward(completions, enough: int = 8, **kwargs) -> list[float]:
    """The number of digits, in parts of `enough`: facts and figures."""
    return [min(len(re.findall(r"\d", each)) / enough, 1.0) for each in _texts(completions)]


def true_reward(completions, text: list[str], **kwargs) -> list[float]:
    """1 if each number of the completion stands in the data set's column `text` too, or there is none; else 0."""
    pairs = zip(_texts(completions), text, strict=True)
    return [float(set(re.findall(r"\d+", each)) <= set(re.findall(r"\d+", fact))) for each, fact in pairs]


def kind_reward(completions, **kwargs) -> list[float]:
    """1 if there is a kind word for whoever asks: いい質問, "good question"."""
    return [float("いい質問" in text) for text in _texts(completions)]


def about_reward(completions, title: list[str], **kwargs) -> list[float]:
    """1 if the completion names what was asked about: the data set's column `title`."""
    return [float(subject in text) for text, subject in zip(_texts(completions), title, strict=True)]


def answer_reward(completions, answer: list[str], **kwargs) -> list[float]:
    """1 if the answer is in the completion: the data set's column `answer`."""
    return [float(right in text) for text, right in zip(_texts(completions), answer, strict=True)]


def _texts(completions) -> list[str]:
    """TRL hands over chat messages where the prompts are chat messages, and strings where they are strings."""
    return [c if isinstance(c, str) else "".join(message["content"] or "" for message in c) for c in completions]
