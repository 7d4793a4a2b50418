"""Cheats: texts that are no answers, made from the user's own rows. Does a reward pay one as much as the right answer?

If so, a policy will find it. No model is needed. Each reward is judged alone: in a total it hides behind one of length.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from harness.before.miniature import without_a_trace
from harness.before.plan import Plan
from harness.errors import RewardError, one_line
from harness.reward import Reward

ROWS = 64
NEARLY = 0.95  # of what the right answer earns more than an empty text
SLOW = 5  # seconds for a text to each row
FORMS = ("{}", r"\boxed{{{}}}")  # of an answer, of which a reward may take only one


@without_a_trace(devices=[])
def cheats(plan: Plan, own_texts: Sequence[str] = ()) -> list[str]:
    """One note per reward that is trained on and needs a column of the data, or none; and which ones were not asked.

    They are asked about texts made from the rows; or about the policy's `own_texts`, each as the answer to every
    question.
    """
    rows = plan.data.train.shuffle(seed=0, keep_in_memory=True)[:ROWS]
    notes = []
    for reward in plan.rewards:
        if reward.weight:
            try:
                notes += _notes(plan, reward, rows, own_texts)
            except RewardError as error:
                notes.append(f"on a text made from the rows, {error}")
    return notes


def _notes(plan: Plan, reward: Reward, rows: dict, own_texts: Sequence) -> list[str]:
    name = reward.logged
    if reward.may_cost:
        return [f"{name} is not asked, as that may cost"]
    answers = {}
    for column in reward.columns:
        texts = [_as_text(value) for value in rows[column]]
        if len({*texts} - {""}) > 1:  # what is the same in all rows answers no question
            answers[column] = texts
    if not answers:
        return []
    earned = partial(_earned, plan, reward, rows)
    begin = time.perf_counter()
    nothing = earned([""] * len(rows["prompt"]))
    if time.perf_counter() - begin > SLOW:
        return [f"{name} is not asked further, as one text for each row takes it over {SLOW} s"]
    right, most = [], nothing
    for texts in answers.values():
        for form in FORMS:
            formed = [form.format(text) for text in texts]
            pay = earned(formed)
            if pay > most:
                right, most = formed, pay
    if not right:
        if reward.weight < 0:
            return []  # such a text costs, as it is meant to
        why = "no answers, not in its form, or longer than max_completion_length"
        return [f"{name} pays no value of {', '.join(answers)} more than an empty text: {why}"]

    cheats = {f"{one_line(repr(text), 100)} to every question": [text] * len(right) for text in own_texts}
    cheats = cheats or _made_up(right, rows["prompt"])
    paid = [kind for kind, texts in cheats.items() if earned(texts) - nothing >= NEARLY * (most - nothing)]
    return [f"{name} pays {' and '.join(paid)} as much as the right answer"] if paid else []


def _made_up(right: list[str], prompts: list) -> dict:
    """By kind, a list of a text for each row."""
    distinct = sorted({*right} - {""}, key=right.count, reverse=True)  # the commonest first
    return {
        "another row's answer": [*right[1:], right[0]],
        "a list of eight": [", ".join([*distinct[:4], answer, *distinct[4:7]]) for answer in right],
        "the commonest answers in one text": [", ".join(distinct)] * len(right),
        "a denial": [f"not {answer}" for answer in right],
        "the question": [prompt[-1]["content"] for prompt in prompts],
    }


def _earned(plan: Plan, reward: Reward, rows: dict, texts: list[str]) -> float:
    """The mean of weight x score of a text for each row, truncated where a completion would be."""
    tokenizer = plan.policy.tokenizer
    most = plan.args.max_completion_length
    ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=most)["input_ids"]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)  # as TRL does
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    others = rows | {"completion_ids": ids}
    scores = reward.score(others.pop("prompt"), completions, others, plan.state())
    return reward.weight * sum(score or 0 for score in scores) / len(scores)  # None is 0 in TRL's sum, too


def _as_text(value: Any) -> str:
    """What stands in a column; of a list the first, as any is right."""
    if isinstance(value, list):
        value = next(iter(value), None)
    return "" if value is None else str(value)
