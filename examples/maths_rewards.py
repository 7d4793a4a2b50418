"""A rewards.py for questions whose answer is a number. recipes/maths.yaml names its rewards.

python rewards.py --rewards_file examples/maths_rewards.py --config recipes/maths.yaml "8 and 4 are 12." "12, I think"
"""

import re
from fractions import Fraction

# No digit of a word (m2, x1) counts, and the minus of 5-3 or f(2)-3 is no sign. Japanese has no space before a number.
NUMBER = r"(?:(?<![A-Za-z\d)])[-−])?[$€£¥]?(?<![A-Za-z\d])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?"


def number_reward(completions, answer: list[str], **kwargs) -> list[float | None]:
    """1 if the last number of the text is the answer's; 1,234, 1234.0 and $1234 are the same.

    Of the column `answer` the last number counts too, so that GSM8K's, which end in "#### 72", serve as they are; of a
    list any answer is right. None for a row whose answer holds no number.
    """
    found = map(_last_number, _texts(completions))
    rows = [(number, _rights(value)) for number, value in zip(found, answer, strict=True)]
    return [float(number in rights) if rights else None for number, rights in rows]


def ends_in_number_reward(completions, **kwargs) -> list[float]:
    """1 if the completion ends in a number, as in "so it is **12**." and "Answer: 12": it comes to an answer and stops.

    A 135M model never writes a last line "Answer: 12" by itself, so that there would be nothing
    to reinforce; it ends in a number now and then.
    """
    return [float(re.search(rf"{NUMBER}[\s.。*$)\]}}\\]*$", text) is not None) for text in _texts(completions)]


def _rights(answer) -> list[Fraction]:
    rights = []
    for value in answer if isinstance(answer, list) else [answer]:
        if not isinstance(value, str | int | float | None):
            raise TypeError(f"the answer {value!r} is no text and no number")
        rights.append(_last_number(str(value)))  # of None, and of a text without a number, there is none
    return [right for right in rights if right is not None]


def _last_number(text: str) -> Fraction | None:
    text = re.sub(r"\\[dt]?frac{(\d+)}{(\d+)}", r"\1/\2", text)
    numbers = re.findall(NUMBER, text)
    try:
        return Fraction(re.sub(r"[,$€£¥]", "", numbers[-1].replace("−", "-"))) if numbers else None
    except (ValueError, ZeroDivisionError):  # over 4,300 digits; 1/0
        return None


def _texts(completions) -> list[str]:
    """TRL hands over chat messages where the prompts are chat messages, and strings where they are strings."""
    return [c if isinstance(c, str) else "".join(message["content"] or "" for message in c) for c in completions]
