"""Data: the rows of the data set become prompts, to train on and to hold out; what becomes of each row is counted."""

import difflib
import hashlib
import json
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset, Features, Json, List, Value
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig

from harness.before.messages import NoMessages, as_messages, without_filling
from harness.before.read_rows import read_rows
from harness.errors import UserError, one_line
from harness.keys import Prompts
from harness.rewards_file import FROM_TRL
from harness.settings import Settings

# Names under which TRL or we pass something else to a reward, and columns that change what TRL does.
RESERVED = FROM_TRL | {"completion", "tools", "image", "images", "environment", "environments"}
RESERVED |= {"held_out", "prompt_length", "prompt_hash", "prompt_problem"}
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

    feature = rows.features[prompts.column]

    def add_prompts(batch: dict[str, list]) -> dict[str, list]:
        kept, problems = [], []
        for question in batch[prompts.column]:
            try:
                turns, problem = as_messages(without_filling(question, feature), prompts.system), None
            except NoMessages as error:
                turns, problem = [], str(error)
            kept.append([json.dumps(turn, ensure_ascii=False, default=str) for turn in turns])
            problems.append(problem)
        # As the template sees them in training, and what it makes of each.
        texts = [
            prompt_text([*map(Json().decode_example, turns)], tokenizer, template) if turns else "" for turns in kept
        ]
        return {
            "prompt": kept,
            "prompt_problem": problems,
            "prompt_length": [*map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])],
            "prompt_hash": [
                xxhash.xxh64_intdigest(text.encode()) >> 1 for text in texts
            ],  # the policy sees these alike
        }

    # As JSON: in a struct each turn would get the keys of all others, and its template would see them.
    made = {"prompt": List(Json()), "prompt_problem": Value("string")}
    made |= {"prompt_length": Value("int64"), "prompt_hash": Value("int64")}
    try:
        rows = rows.map(add_prompts, batched=True, features=Features({**rows.features, **made}), desc="Chat template")
    except (TemplateError, ValueError) as error:
        raise _refused_by_template(settings, tokenizer, rows, error) from error
    lengths, hashes = (rows.with_format("numpy")[name][:] for name in ("prompt_length", "prompt_hash"))
    problems = rows["prompt_problem"][:]
    empty = np.array([problem is not None for problem in problems])
    too_long = lengths > (prompts.max_length or lengths.max())
    if empty.any():
        numbers = empty.nonzero()[0].tolist()
        some = f"rows {', '.join(map(str, numbers[:5]))}; row {numbers[0]}{problems[numbers[0]]}"
        held = f"{len(numbers)} of {len(rows):,} rows hold no question ({some})"
        if empty.all() or not prompts.drop_empty:
            remedy = "fix the data, or drop these rows with prompts.drop_empty: true"
            raise settings.error("prompts.column", f"{held}; {remedy}")
        print(f"note: {held}; they are dropped, as prompts.drop_empty says")
    kept = (~empty & ~too_long).nonzero()[0]
    if not len(kept):
        shortest = f"the shortest of {len(rows):,} has {lengths[~empty].min()} tokens after the chat template"
        problem = f"no prompt is left; {shortest}, {prompts.max_length} are allowed; raise it"
        raise settings.error("prompts.max_length", problem)
    firsts = kept[np.sort(np.unique(hashes[kept], return_index=True)[1])]  # of rows with the same question
    seed = settings.training.get("seed", GRPOConfig.seed)
    held_out = random.Random(seed).sample(firsts.tolist(), min(settings.samples.held_out, len(firsts) // 4))
    different = kept[~np.isin(hashes[kept], hashes[held_out])]  # from each question that is held out
    once = np.setdiff1d(firsts, held_out)
    trained = once if prompts.drop_duplicates else different
    counts = {
        "read": len(rows),
        "to train on": len(trained),
        "held out": len(held_out),
        "empty (dropped)": int(empty.sum()),
        "too long (dropped)": int(too_long.sum()),
        "the same as a held-out one (dropped)": len(kept) - len(different) - len(held_out),
        f"duplicates ({'dropped' if prompts.drop_duplicates else 'kept'})": len(different) - len(once),
    }
    usable = rows.remove_columns([*(made.keys() - {"prompt"}), *(RESERVED & {prompts.column})])
    return Data(usable.select(trained), usable.select(held_out), counts, lengths[trained])


def prompt_text(turns: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, template: dict[str, Any]) -> str:
    """What the chat template makes of a conversation, its generation prompt included."""
    always = {"add_generation_prompt": True, "tokenize": False}
    return tokenizer.apply_chat_template(turns, **template | always)


def _refused_by_template(settings: Settings, tokenizer, rows: Dataset, error: Exception) -> UserError:
    """The first row that the policy's chat template does not take, and whether it is for a system turn."""
    name, system = settings.model["pretrained_model_name_or_path"], settings.prompts.system
    template = settings.training.get("chat_template_kwargs") or {}
    for number, row in enumerate(rows):
        try:
            turns = as_messages(row[settings.prompts.column], system)
            prompt_text(turns, tokenizer, template)
        except NoMessages:
            continue
        except (TemplateError, ValueError) as found:
            roles = ", ".join(turn["role"] for turn in turns)
            problem = f"row {number}: the template of {name} refuses its turns ({roles}): {one_line(found)}"
            remedy = "remove prompts.system" if system else "set prompts.system, if it wants one"
            return settings.error("prompts.column", f"{problem}; fix the row, or {remedy}")
    return settings.error("model.pretrained_model_name_or_path", f"the template of {name}: {one_line(error)}")


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
