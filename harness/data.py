"""Data: rows of any `datasets.load_dataset` source become chat prompts; every other column stays for the rewards."""

from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from transformers import PreTrainedTokenizerBase

from harness.settings import Prompts, UserError


def load_prompts(source: dict[str, Any], prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The data set with a column `prompt` of chat messages; prompts over `max_length` are dropped, and counted aloud.

    Args:
        source: keyword arguments of `datasets.load_dataset`.
        prompts: which column holds the question, the system prompt, `max_length` in tokens after the chat template
            (the generation prompt included), and the number of rows to read.
        tokenizer: the policy's, for its chat template.
    """
    rows = load_dataset(**source)
    if isinstance(rows, dict):
        raise UserError(f"dataset.split: none given; choose one of {', '.join(rows)}")
    if isinstance(rows, IterableDataset):
        if prompts.limit is None:
            raise UserError("prompts.limit: streaming needs to know where to stop; give a number of rows")
        rows = Dataset.from_list(list(rows.take(prompts.limit)), features=rows.features)
    elif prompts.limit is not None:
        rows = rows.select(range(min(prompts.limit, len(rows))))
    if prompts.column not in rows.column_names:
        raise UserError(f"prompts.column: {prompts.column!r} is no column; the data has {', '.join(rows.column_names)}")

    system = [{"role": "system", "content": prompts.system}] if prompts.system else []

    def add_prompts(batch: dict[str, list]) -> dict[str, list]:
        messages = [system + [{"role": "user", "content": question}] for question in batch[prompts.column]]
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        return {"prompt": messages, "prompt_length": [len(ids) for ids in tokens]}

    rows = rows.map(add_prompts, batched=True, desc="Chat template")
    kept = [
        i
        for i, length in enumerate(rows["prompt_length"])
        if prompts.max_length is None or length <= prompts.max_length
    ]
    print(f"prompts: {len(kept):,} kept, {len(rows) - len(kept):,} dropped (over {prompts.max_length} tokens)")
    return rows.select(kept).remove_columns("prompt_length")
