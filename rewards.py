"""Reward functions: plain text in, one float per completion out. This file is yours to edit.

    python rewards.py "富士山は3776mです🗻✨" "はい"    # each reward of each text; --config as in train_grpo.py, --help
    python rewards.py < answers.txt                    # one row per line

A reward takes `completions` (strings, or lists of chat messages), any column of the data set under its own name (here
`answer`), and its own settings with their defaults. `**kwargs` may be left out; TRL alone needs it. To add a reward,
write a function here, then name it under `rewards:` in config.yaml with its weight and its settings. TRL's own may be
named where they are imported here, and `soft = get_soft_overlong_punishment(256, 64)` is a reward as well.
"""

if __name__ == "__main__":  # here, so that a package that is missing is one line
    import sys

    from harness.__main__ import start

    start("score", "--rewards_file", __file__, *sys.argv[1:])

import re
import unicodedata

import emoji
import numpy as np


def emoji_reward(completions, max_emoji: int = 4, **kwargs) -> list[float]:
    """The number of emoji: at most `max_emoji`; a family, a flag or a keycap is one."""
    return [float(min(emoji.emoji_count(text), max_emoji)) for text in _texts(completions)]


def length_reward(completions, target_length: int = 30, alpha: float = 0.15, **kwargs) -> list[float]:
    """exp(-alpha * |characters - target_length|): 1 at the target, 0.22 ten characters off, next to nothing at 60."""
    return [float(np.exp(-alpha * np.abs(len(text) - target_length))) for text in _texts(completions)]


def answer_reward(completions, answer: list, f1: bool = False, **kwargs) -> list[float]:
    """1 if the answer, the data set's column `answer`, is in the completion (with `f1` less); else 0.

    Width, case and spaces do not count. An answer may be a text, a number (3776.0 is 3776), or a list of these, of
    which any is right. With `f1` it is the less, the more there is beside the answer, as in a list of guesses:
    2 * characters of the answer / (these + all).
    """
    scores = []
    for text, value in zip(map(_normalised, _texts(completions)), answer, strict=True):
        found = [len(right) for right in _rights(value) if right in text]
        score = float(bool(found))
        if found and f1:
            score = 2 * max(found) / (max(found) + len(text))
        scores.append(score)
    return scores


def _rights(answer) -> list[str]:
    """The texts of which any is right. An empty one would be in every text, so a row without an answer has none."""
    rights = []
    for value in answer if isinstance(answer, list) else [answer]:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, str | int | float | None):
            raise TypeError(f"the answer {value!r} is no text and no number")
        rights.append("" if value is None or value != value else _normalised(str(value)))  # NaN is none either
    return [right for right in rights if right]


def _texts(completions) -> list[str]:
    """TRL hands over chat messages where the prompts are chat messages, and strings where they are strings."""
    return [c if isinstance(c, str) else "".join(message["content"] or "" for message in c) for c in completions]


def _normalised(text: str) -> str:
    """Without spaces, in small letters, half width, and 3,776 as 3776."""
    text = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
