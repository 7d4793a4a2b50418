"""Data: the rows of the data set become prompts, to train on and to hold out; what becomes of each row is counted."""

import difflib
import functools
import hashlib
import json
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from trl import GRPOConfig

from harness.before.read_rows import read_rows
from harness.errors import UserError, one_line
from harness.reward import FROM_TRL
from harness.settings import Settings

# Names under which TRL or we pass something else to a reward, and columns that change what TRL does.
RESERVED = FROM_TRL | {"completion", "tools", "image", "images", "environment", "environments"}
RESERVED |= {"held_out", "prompt_length", "prompt_hash"}
USUAL = ("query", "question", "prompt", "messages", "instruction", "input", "text")  # names of a column of questions


@dataclass
class Data:
    """Rows with a column `prompt` of chat messages: to train on, and never trained on; and what became of each row."""

    train: Dataset
    held_out: Dataset
    counts: dict[str, int]
    lengths: np.ndarray  # tokens of each prompt to train on

    def in_words(self) -> str:
        """`291 read: 283 to train on, 8 held out`, and what else there was."""
        some = [f"{count:,} {what}" for what, count in self.counts.items() if count or what == "held out"]
        return f"{some[0]}: {', '.join(some[1:])}"

    def sha256(self) -> str:
        """Of the rows trained on, in their order."""
        digest = hashlib.sha256()
        for batch in self.train.iter(1000):
            digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
        return digest.hexdigest()


def load_data(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Data:
    """Load `dataset`, make `prompts` of it with the policy's chat template, hold `samples.held_out` rows out.

    At most a quarter of the questions is held out. A prompt over `prompts.max_length` tokens, the template and its
    generation prompt included, is dropped. So is each further row with a question that is held out.
    """
    prompts, template = settings.prompts, settings.training.get("chat_template_kwargs") or {}
    rows = _with_question_column(settings, read_rows(settings))
    if taken := sorted(RESERVED & set(rows.column_names) - {prompts.column}):
        print(f"note: left out of the data, as these names are taken: {', '.join(taken)}")
        rows = rows.remove_columns(taken)

    def add_prompts(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        messages = [as_messages(question, prompts.system) for question in batch[prompts.column]]
        asked = [conversation for conversation in messages if conversation]
        try:
            lengths = iter(token_counts(asked, tokenizer, template) if asked else [])
        except (TemplateError, ValueError) as error:  # the template's own words; several templates and no default
            rows_asked = {number: each for number, each in zip(numbers, messages, strict=True) if each}
            raise _refused_by_template(settings, tokenizer, rows_asked) from error
        return {
            "prompt": messages,
            "prompt_length": [next(lengths) if conversation else 0 for conversation in messages],
            "prompt_hash": [xxhash.xxh64_intdigest(repr(conversation).encode()) >> 1 for conversation in messages],
        }

    rows = rows.map(add_prompts, batched=True, with_indices=True, desc="Chat template")
    lengths, hashes = (rows.with_format("numpy")[name][:] for name in ("prompt_length", "prompt_hash"))
    empty, too_long = lengths == 0, lengths > (prompts.max_length or lengths.max())
    if empty.all() or (empty.any() and not prompts.drop_empty):
        first = [int(i) for i in empty.nonzero()[0][:5]]
        held = f"rows {', '.join(map(str, first))}; row {first[0]} holds {str(rows[first[0]][prompts.column])[:60]!r}"
        problem = (
            f"{empty.sum()} of {len(rows):,} rows hold no question ({held}), neither text nor messages with role and "
            "content; fix the data, or drop these rows with prompts.drop_empty: true"
        )
        raise settings.error("prompts.column", problem)
    kept = (~empty & ~too_long).nonzero()[0]
    if not len(kept):
        shortest = f"the shortest of {len(rows):,} has {lengths[~empty].min()} tokens after the chat template"
        problem = f"no prompt is left; {shortest}, {prompts.max_length} are allowed; raise it"
        raise settings.error("prompts.max_length", problem)
    firsts = kept[np.sort(np.unique(hashes[kept], return_index=True)[1])]  # of rows with the same question
    seed = settings.training.get("seed", GRPOConfig.seed)
    held_out = random.Random(seed).sample(firsts.tolist(), min(settings.samples.held_out, len(firsts) // 4))
    known = np.isin(hashes[kept], hashes[held_out])
    different = kept[~known]
    once = np.setdiff1d(firsts, held_out)
    trained = once if prompts.drop_duplicates else different
    counts = {
        "read": len(rows),
        "to train on": len(trained),
        "held out": len(held_out),
        "empty (dropped)": int(empty.sum()),
        "too long (dropped)": int(too_long.sum()),
        "the same as a held-out one (dropped)": int(known.sum()) - len(held_out),
        f"duplicates ({'dropped' if prompts.drop_duplicates else 'kept'})": len(different) - len(once),
    }
    ours = {"prompt_length", "prompt_hash"} | RESERVED & {prompts.column}
    usable = rows.remove_columns([*ours])
    return Data(usable.select(trained), usable.select(held_out), counts, lengths[trained])


def token_counts(
    conversations: list[list[dict[str, str]]], tokenizer: PreTrainedTokenizerBase, template: dict[str, Any]
) -> list[int]:
    """How many tokens the chat template makes of each, its generation prompt included."""
    made = functools.partial(tokenizer.apply_chat_template, conversations, **template | {"add_generation_prompt": True})
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return [*map(len, made()["input_ids"])]
    texts = made(tokenize=False)
    tokenizer(texts[0], add_special_tokens=False)  # for its side effect: it resets the truncation of tokenizer.json
    # Upstream spends half of its time on offsets and lists of ids, which nobody needs here.
    return [*map(len, tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False))]


def _refused_by_template(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, rows: dict[int, list[dict[str, str]]]
) -> UserError:
    """Which of the settings, or which row, the policy's chat template does not take, and what to do."""
    template, name = (
        settings.training.get("chat_template_kwargs") or {},
        settings.model["pretrained_model_name_or_path"],
    )

    def why_not(*turns: dict[str, str]) -> str:
        try:
            return token_counts([list(turns)], tokenizer, template) and ""
        except (TemplateError, ValueError) as error:
            return one_line(error)

    system, question = ({"role": role, "content": settings.prompts.system or "?"} for role in ("system", "user"))
    alone, both = why_not(question), why_not(system, question)
    if alone and both:
        return settings.error("model.pretrained_model_name_or_path", f"the template of {name} does not work: {alone}")
    if alone and not settings.prompts.system:
        return settings.error("prompts.system", f"the template of {name} wants one ({alone}); set it")
    if both and settings.prompts.system:
        remedy = "remove it, or put it into the question"
        return settings.error("prompts.system", f"the template of {name} refuses it ({both}); {remedy}")
    number, why = next((number, why) for number, turns in rows.items() if (why := why_not(*turns)))
    roles = ", ".join(turn["role"] for turn in rows[number])
    problem = f"row {number}: the template of {name} refuses its turns ({roles}): {why}; fix the row, or leave it out"
    return settings.error("prompts.column", problem)


def _with_question_column(settings: Settings, rows: Dataset) -> Dataset:
    """`rows`, renamed as prompts.rename says; raises UserError where they have no prompts.column then."""
    prompts, names = settings.prompts, rows.column_names
    for old, new in (prompts.rename or {}).items():
        if old not in names or new in names or list(prompts.rename.values()).count(new) > 1:
            problem = f"there is a column {new!r} already" if old in names else f"there is no column {old!r}"
            raise settings.error(f"prompts.rename.{old}", f"{problem}; the data have {', '.join(names)}; fix the name")
    rows = rows.rename_columns(prompts.rename or {})
    if prompts.column not in rows.column_names:
        near = difflib.get_close_matches(prompts.column, rows.column_names, n=1, cutoff=0.4)
        likely = near + [name for name in USUAL if name in rows.column_names]
        hint = f"did you mean {likely[0]}?" if likely else "choose one of them"
        only = rows[0] if len(rows) == 1 else {}
        for name in (name for name, value in only.items() if _rows_with(prompts.column, value)):
            hint = f"its rows stand in {name}: set dataset.field: {name}"
        if len(rows.column_names) == 1 and any(mark in rows.column_names[0] for mark in ";\t|，"):
            hint = "its columns are not separated by commas; set dataset.delimiter"
        problem = f"there is no column {prompts.column!r}; the data have {', '.join(rows.column_names)}; {hint}"
        raise settings.error("prompts.column", problem)
    if isinstance(first := rows[0][prompts.column], list) and first and _role(first[-1]) == "assistant":
        print("note: the data are conversations; where the last turn is the assistant's, it is cut off")
    return rows


def _rows_with(column: str, value: Any) -> bool:
    """Whether a value of an only row is in truth the list of rows, as in {"version": 1, "data": [...]}."""
    return isinstance(value, list) and any(isinstance(row, dict) and column in row for row in value)


def as_messages(question: Any, system: str | None) -> list[dict[str, str]]:
    """A question, or a conversation up to its last turn that is not the assistant's, as chat messages; [] for none."""
    if isinstance(question, str):
        messages = [{"role": "user", "content": question}] if question.strip() else []
    else:
        turns = question if isinstance(question, list) else []
        turns = turns[:-1] if turns and _role(turns[-1]) == "assistant" else turns
        texts = all(_role(turn) and isinstance(turn.get("content"), str) and turn["content"].strip() for turn in turns)
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns] if texts else []
    has_system = not messages or messages[0]["role"] == "system"
    return messages if has_system or not system else [{"role": "system", "content": system}, *messages]


def _role(turn: Any) -> str | None:
    return turn.get("role") if isinstance(turn, dict) else None
