"""Forecast: would one fixed text win, given to every question? Then a run may end there, with all answers forgotten.

Each distinct completion of the untrained policy is scored on the rows of the other prompts too, by the functions of
rewards.py that have a weight. It wins if its mean there is no lower than that of the groups' best completions. Of
rewards that do not look at the question the best text always wins. A reward looks at it if it gives any text different
scores on two questions; with such a one a text wins only if it is right nearly everywhere, or gains more elsewhere than
it loses. Then training need not end there, so that it is a note and no warning: of the demo with answer_reward at a
weight of 1 the policy learned both, at 0.25 it forgot every answer.

Its limits: training may find a better text than the policy has written so far, or another hack than a fixed text, so
that "none wins" is no promise. Groups that score alike are left out: nothing is learned from them, and where all fail
every text would be as good as the best. A reward that compares completions is shown one text for all questions.
"""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase, TrainerState

from harness.errors import RewardError
from harness.reward import FLAT, Reward

ENOUGH = 4  # groups that differ
SECONDS = 20.0  # at most; the texts that score best on their own question come first


def forecast(
    sampled: pd.DataFrame,
    rewards: list[Reward],
    train: Iterable[dict[str, Any]],
    group: int,
    tokenizer: PreTrainedTokenizerBase,
    state: TrainerState,
) -> dict[str, Any]:
    """Of the best fixed text: `wins`, and what it, the policy and its best of a `group` score on the same prompts.

    `sampled`: prompt, completion and rewards, as TRL logs them, group by group. `none`: why there is no forecast.
    """
    asked = [reward for reward in rewards if reward.weight and not reward.may_cost]
    left_out = [reward.logged for reward in rewards if reward.weight and reward.may_cost]
    found: dict[str, Any] = {"of": group, "left_out": left_out}
    if not asked:
        return found | {"none": "no other reward has a weight"}
    names, weights = [reward.logged for reward in asked], np.array([reward.weight for reward in asked])
    sampled = sampled.assign(
        text=[completion[-1]["content"] or "" for completion in sampled.completion],
        key=[_key(prompt) for prompt in sampled.prompt],
        score=sampled[names].fillna(0).to_numpy(dtype=float) @ weights,
    )
    groups = sampled.score.to_numpy().reshape(-1, group)
    differ = np.ptp(groups, axis=1) >= FLAT
    prompts = sampled.key.to_numpy()[::group][differ]
    if (n := len(set(prompts))) < ENOUGH:
        return found | {"none": f"only on {n} of {sampled.key.nunique()} questions do completions score differently"}
    by_key = {_key(row["prompt"]): row for row in train}
    rows = [by_key[key] for key in prompts]
    means = {"policy": groups[differ].mean(axis=1), "best": groups[differ].max(axis=1)}
    begin, lead, reads = time.monotonic(), -np.inf, np.zeros(len(asked), dtype=bool)
    texts = sampled.sort_values("score", ascending=False).drop_duplicates("text")
    try:
        for found["tried"], (text, key) in enumerate(zip(texts.text, texts.key, strict=True), 1):
            others = prompts != key  # that it is right for its own question is what it was found by
            scores = _on_each(text, rows, asked, tokenizer, state)
            reads |= scores.max() - scores.min() >= FLAT
            means["fixed"] = scores.fillna(0).to_numpy() @ weights
            if (ahead := (means["fixed"] - means["best"])[others].mean()) > lead:
                lead = ahead
                found |= {name: float(values[others].mean()) for name, values in means.items()}
                found |= {"wins": bool(lead > -FLAT), "text": text}
            if time.monotonic() - begin > SECONDS:
                break
    except RewardError as error:
        return found | {"none": str(error)}
    return found | {"read_by": [name for name, does in zip(names, reads, strict=True) if does]}


def in_words(found: dict[str, Any]) -> str:
    """What `forecast` has found, for a person."""
    left = f"; {', '.join(found['left_out'])} not asked, as that may cost" if found["left_out"] else ""
    if "none" in found:
        return f"no forecast whether one fixed text wins: {found['none']}{left}"
    fixed, policy, best = (f"{found[name]:.2g}" for name in ("fixed", "policy", "best"))
    scores = f"would score {fixed} on every question (the policy {policy}, its best of {found['of']} {best})"
    if not found["wins"]:
        return f"good: no fixed text wins; the best of {found['tried']} {scores}{left}"
    text = f"{left}\n    the text: {' '.join(found['text'].split())}"
    if found["read_by"]:
        readers = f"{', '.join(found['read_by'])} (which depends on the question)"
        return f"note: one fixed text {scores}, though {readers} counts too; give it more weight if it falls{text}"
    remedy = "keep a canary (a reward of weight 0), or give a reward that depends on the question more weight"
    return f"warning: one fixed text {scores}: these rewards can be won without reading the question; {remedy}{text}"


def _on_each(text: str, rows: list[dict[str, Any]], rewards: list[Reward], tokenizer, state) -> pd.DataFrame:
    """What `text` would score as the completion of each of `rows`: a column for each of `rewards`."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["completion_ids"] = [tokenizer(text, add_special_tokens=False)["input_ids"]] * len(rows)
    prompts, completions = columns.pop("prompt"), [[{"role": "assistant", "content": text}] for _ in rows]
    scores = [reward.score(prompts, completions, columns, state) for reward in rewards]
    return pd.DataFrame(np.array(scores, dtype=float).T)  # NaN where a reward does not apply


def _key(prompt: Iterable[dict[str, Any]]) -> str:
    """The same for a prompt of the data and as it comes back from a parquet file."""
    return repr([(message["role"], str(message["content"])) for message in prompt])
