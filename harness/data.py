"""Data: rows of any `datasets.load_dataset` source become chat prompts; every other column stays for the rewards."""

import difflib
import random
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from transformers import PreTrainedTokenizerBase

from harness.models import loading_problem
from harness.settings import Prompts, UserError


def load_prompts(source: dict[str, Any], prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, int]:
    """The data set with a column `prompt` of chat messages, and how many prompts over `max_length` were dropped.

    Args:
        source: keyword arguments of `datasets.load_dataset`.
        prompts: which column holds the question, the system prompt, `max_length` in tokens after the chat template
            (the generation prompt included), and the number of rows to read.
        tokenizer: the policy's, for its chat template.
    """
    rows = _load_rows(source, prompts.limit)
    if prompts.column not in rows.column_names:
        near = difflib.get_close_matches(prompts.column, rows.column_names, n=1, cutoff=0.4)
        usual = [name for name in ("query", "question", "prompt", "instruction", "input") if name in rows.column_names]
        likely = f"; did you mean {(near + usual)[0]}?" if near + usual else "; choose one of them"
        raise UserError(
            f"prompts.column: {prompts.column!r} is no column of the data, which has "
            f"{', '.join(rows.column_names)}{likely}"
        )
    rows = _without_empty_questions(rows, prompts)

    system = [{"role": "system", "content": prompts.system}] if prompts.system else []

    def add_prompts(batch: dict[str, list]) -> dict[str, list]:
        messages = [system + [{"role": "user", "content": question}] for question in batch[prompts.column]]
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        return {"prompt": messages, "prompt_length": [len(ids) for ids in tokens]}

    rows = rows.map(add_prompts, batched=True, desc="Chat template")
    kept = range(len(rows))
    if prompts.max_length is not None:
        kept = [i for i, length in enumerate(rows["prompt_length"]) if length <= prompts.max_length]
    if not kept:
        raise UserError(
            f"prompts.max_length: no prompt is left; the shortest of {len(rows):,} has {min(rows['prompt_length'])} "
            f"tokens after the chat template, {prompts.max_length} are allowed; raise it"
        )
    return rows.select(kept).remove_columns("prompt_length"), len(rows) - len(kept)


def hold_out(dataset: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """(what is trained on, `count` rows that never are), chosen by `seed`."""
    held_out = sorted(random.Random(seed).sample(range(len(dataset)), min(count, len(dataset))))
    return dataset.select(sorted(set(range(len(dataset))) - set(held_out))), dataset.select(held_out)


def _load_rows(source: dict[str, Any], limit: int | None) -> Dataset:
    if source.get("streaming") and limit is None:
        raise UserError("prompts.limit: streaming has to know where to stop; give a number of rows")
    try:
        rows = load_dataset(**source)
        if isinstance(rows, dict):
            raise UserError(f"dataset.split: none given; choose one of {', '.join(rows)}")
        if isinstance(rows, IterableDataset):
            return Dataset.from_list(list(rows.take(limit)), features=rows.features)
    except UserError:
        raise
    except Exception as error:  # datasets, huggingface_hub, pyarrow and pandas each raise kinds of their own
        if "split" in str(error):  # Unknown split "trian". Should be one of ['train'].
            raise UserError(f"dataset.split: {error}") from error
        raise UserError(loading_problem("dataset.path", str(source.get("path")), error)) from error
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def _without_empty_questions(rows: Dataset, prompts: Prompts) -> Dataset:
    questions = rows[prompts.column]
    bad = [i for i, question in enumerate(questions) if not isinstance(question, str) or not question.strip()]
    if bad and not prompts.drop_empty:
        raise UserError(
            f"prompts.column: {len(bad)} of {len(rows):,} questions are no text (rows {', '.join(map(str, bad[:5]))}, "
            f"the first {questions[bad[0]]!r}); mend the data, or set prompts.drop_empty: true"
        )
    return rows.select(sorted(set(range(len(rows))) - set(bad))) if bad else rows
