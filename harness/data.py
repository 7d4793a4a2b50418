"""Data: rows of any `datasets.load_dataset` source become chat prompts; every other column stays for the rewards."""

import difflib
import random
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig

from harness.exits import UserError
from harness.models import loading_problem
from harness.settings import Prompts, Settings

# TRL or we pass something else under these names, or TRL reads them as more than a column for the rewards.
TAKEN = {"prompts", "completions", "completion", "completion_ids", "trainer_state", "log_extra", "log_metric"}
TAKEN |= {"tools", "image", "images", "environment", "environments", "held_out", "prompt_length"}


@dataclass
class Data:
    """Rows with a column `prompt` of chat messages: to train on, never trained on; and how many were too long."""

    train: Dataset
    held_out: Dataset
    dropped: int


def load_data(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Data:
    """Load `dataset`, make `prompts` of it with the policy's chat template, hold `samples.held_out` rows out.

    A prompt over `prompts.max_length` tokens, the template and its generation prompt included, is dropped.
    """
    prompts = settings.prompts
    rows = _load_rows(settings.dataset, prompts.limit)
    if prompts.column not in rows.column_names:
        near = difflib.get_close_matches(prompts.column, rows.column_names, n=1, cutoff=0.4)
        usual = [name for name in ("query", "question", "prompt", "instruction", "input") if name in rows.column_names]
        likely = f"; did you mean {(near + usual)[0]}?" if near + usual else "; choose one of them"
        raise UserError(
            f"prompts.column: {prompts.column!r} is no column of the data, which has "
            f"{', '.join(rows.column_names)}{likely}"
        )
    rows = _without_empty_questions(rows, prompts)
    if taken := sorted(TAKEN & set(rows.column_names) - {prompts.column}):
        print(f"note: left out of the data, as these names are taken: {', '.join(taken)}")
        rows = rows.remove_columns(taken)

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
    usable = rows.select(kept).remove_columns("prompt_length")
    seed = settings.training.get("seed", GRPOConfig.seed)
    held_out = random.Random(seed).sample(range(len(usable)), min(settings.samples.held_out, len(usable)))
    trained = sorted(set(range(len(usable))) - set(held_out))
    return Data(usable.select(trained), usable.select(sorted(held_out)), len(rows) - len(kept))


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
            hint = "; streaming takes no slices, use prompts.limit" if source.get("streaming") else "; mend it"
            raise UserError(f"dataset.split: {error}{hint}") from error
        key = "data_files" if source.get("data_files") else "path"
        raise UserError(loading_problem(f"dataset.{key}", str(source[key]), error)) from error
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
