"""Data: the rows of the data set become prompts, to train on and to hold out; what becomes of each row is counted."""

import difflib
import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset, Features, Json, List, Value
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from trl import GRPOConfig

from harness.before.messages import NoMessages, read_messages, without_filling
from harness.before.read_rows import read_rows
from harness.errors import UserError, one_line
from harness.keys import Prompts
from harness.rewards_file import FROM_TRL
from harness.settings import Settings

# Names under which TRL or we pass something else to a reward, and columns that change what TRL does.
RESERVED = FROM_TRL | {"completion", "tools", "image", "images", "environment", "environments"}
RESERVED |= {"held_out", "prompt_length", "prompt_hash", "prompt_said"}
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
    template = settings.training.get("chat_template_kwargs") or {}
    rows, prompts = _with_question_column(settings, read_rows(settings))
    if taken := sorted((RESERVED | {"prompt"}) & set(rows.column_names) - {prompts.column}):
        print(f"note: left out of the data, as these names are taken: {', '.join(taken)}")
        rows = rows.remove_columns(taken)

    if nothing := [name for name in rows.column_names if all(value is None for value in rows[name])]:
        print(f"note: empty in all rows: {', '.join(nothing)}")
    feature = rows.features[prompts.column]

    def add_prompts(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        kept, said = [], []
        for question in batch[prompts.column]:
            try:
                turns, changes = read_messages(without_filling(question, feature), prompts.system)
            except NoMessages as error:
                turns, changes = [], [str(error)]
            kept.append([json.dumps(turn, ensure_ascii=False, default=str) for turn in turns])
            said.append(changes)
        messages = [[*map(Json().decode_example, turns)] for turns in kept]  # as the template sees them in training
        asked = [conversation for conversation in messages if conversation]
        try:
            texts = prompt_texts(asked, tokenizer, template) if asked else []
        except (TemplateError, ValueError) as error:  # the template's own words; several templates and no default
            rows_asked = {number: each for number, each in zip(numbers, messages, strict=True) if each}
            raise _refused_by_template(settings, tokenizer, rows_asked) from error
        lengths = iter(token_counts(asked, tokenizer, template, texts) if asked else [])
        hashes = (xxhash.xxh64_intdigest(text.encode()) >> 1 for text in texts)  # alike are what the policy sees alike
        return {
            "prompt": kept,
            "prompt_length": [next(lengths) if conversation else 0 for conversation in messages],
            "prompt_hash": [next(hashes) if conversation else 0 for conversation in messages],
            "prompt_said": said,
        }

    # As JSON: in a struct each turn would get the keys of all others, and its template would see them.
    made = {"prompt": List(Json()), "prompt_length": Value("int64"), "prompt_hash": Value("int64")}
    features = Features({**rows.features, **made, "prompt_said": List(Value("string"))})
    rows = rows.map(add_prompts, batched=True, with_indices=True, features=features, desc="Chat template")
    lengths, hashes = (rows.with_format("numpy")[name][:] for name in ("prompt_length", "prompt_hash"))
    empty, too_long = lengths == 0, lengths > (prompts.max_length or lengths.max())
    said = rows["prompt_said"][:]
    if empty.any():
        first, problem = (numbers := empty.nonzero()[0].tolist())[0], said[empty.argmax()][0]
        some = f"{', '.join(map(str, numbers[:5]))}{', ...' if len(numbers) > 5 else ''}"
        held = f"{empty.sum()} of {len(rows):,} rows hold no question (rows {some}; row {first}{problem})"
        if empty.all() or not prompts.drop_empty:
            remedy = "fix the data, or drop these rows with prompts.drop_empty: true"
            raise settings.error("prompts.column", f"{held}; {remedy}")
        print(f"note: {held}; they are dropped, as prompts.drop_empty says")
    changes = Counter(change for row in (~empty).nonzero()[0] for change in said[row])
    for change, count in changes.items():
        print(f"note: prompts.column, {count:,} of {len(rows):,} rows: {change}")
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
    ours = {"prompt_length", "prompt_hash", "prompt_said"} | RESERVED & {prompts.column}
    usable = rows.remove_columns([*ours])
    return Data(usable.select(trained), usable.select(held_out), counts, lengths[trained])


def prompt_texts(
    conversations: list[list[dict[str, Any]]], tokenizer: PreTrainedTokenizerBase, template: dict[str, Any]
) -> list[str]:
    """What the chat template makes of each, its generation prompt included."""
    always = {"add_generation_prompt": True, "tokenize": False}
    return tokenizer.apply_chat_template(conversations, **template | always)


def token_counts(
    conversations: list[list[dict[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    template: dict[str, Any],
    texts: list[str] | None = None,
) -> list[int]:
    """How many tokens the chat template makes of each, its generation prompt included; `texts`: what it made."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        made = tokenizer.apply_chat_template(conversations, **template | {"add_generation_prompt": True})
        return [*map(len, made["input_ids"])]
    texts = texts or prompt_texts(conversations, tokenizer, template)
    tokenizer(texts[0], add_special_tokens=False)  # for its side effect: it resets the truncation of tokenizer.json
    # Upstream spends half of its time on offsets and lists of ids, which nobody needs here.
    return [*map(len, tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False))]


def _refused_by_template(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, rows: dict[int, list[dict[str, Any]]]
) -> UserError:
    """Which of the settings, or which row, the policy's chat template does not take, and what to do."""
    template, name = (
        settings.training.get("chat_template_kwargs") or {},
        settings.model["pretrained_model_name_or_path"],
    )

    def why_not(*turns: dict[str, Any]) -> str:
        try:
            return prompt_texts([list(turns)], tokenizer, template) and ""
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


def _with_question_column(settings: Settings, rows: Dataset) -> tuple[Dataset, Prompts]:
    """`rows`, renamed as prompts.rename says and with one column of questions, and the section that names it."""
    prompts, names = settings.prompts, rows.column_names
    for old, new in (prompts.rename or {}).items():
        if old not in names or new in names or list(prompts.rename.values()).count(new) > 1:
            problem = f"there is a column {new!r} already" if old in names else f"there is no column {old!r}"
            raise settings.error(f"prompts.rename.{old}", f"{problem}; the data have {', '.join(names)}; fix the name")
    rows = rows.rename_columns(prompts.rename or {})
    columns = prompts.column if isinstance(prompts.column, list) else [prompts.column]
    for column in columns:
        if column not in rows.column_names:
            problem = f"there is no column {column!r}; the data have {', '.join(rows.column_names)}"
            raise settings.error("prompts.column", f"{problem}; {_column_meant(column, rows)}")
    if columns == ["instruction"] and "input" in rows.column_names and any(rows["input"]):
        print("note: the column input is no part of the question; prompts.column: [instruction, input] joins the two")
    if columns == [prompts.column]:
        return rows, prompts

    def join(row: dict[str, Any], number: int) -> dict[str, str]:
        texts = [row[column] for column in columns if row[column] is not None]
        if wrong := [text for text in texts if not isinstance(text, str)]:
            problem = f"row {number} holds {str(wrong[0])[:40]}, and only texts are joined; choose one column"
            raise settings.error("prompts.column", problem)
        return {" + ".join(columns): "\n\n".join(filter(str.strip, texts))}

    return rows.map(join, with_indices=True, desc="Questions"), replace(prompts, column=" + ".join(columns))


def _column_meant(column: str, rows: Dataset) -> str:
    """What to do where there is no such column."""
    for name, value in rows[0].items() if len(rows) == 1 else ():
        if isinstance(value, list) and any(isinstance(row, dict) and column in row for row in value):
            return f"its rows stand in {name}: set dataset.field: {name}"  # {"version": 1, "data": [...]}
    near = difflib.get_close_matches(column, rows.column_names, n=1, cutoff=0.4)
    likely = near + [name for name in USUAL if name in rows.column_names]
    return f"did you mean {likely[0]}?" if likely else "choose one of them"
