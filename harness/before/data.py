"""Data: the rows of the data set become prompts, to train on and to hold out; what becomes of each row is counted."""

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from harness.before.messages import Messages, NoMessages, as_messages, read_messages, without_filling
from harness.before.read_rows import read_rows
from harness.before.text_files import ExactJson
from harness.errors import did_you_mean, in_short, one_line
from harness.rewards_file import FROM_TRL
from harness.settings import Settings

# Of a prompt; as JSON, as in a struct each turn would get the keys of all others, and its template would see them.
PROMPT = {
    "prompt": List(ExactJson("string")),
    "prompt_length": Value("int64"),  # tokens
    "prompt_hash": Value("int64"),
    "prompt_said": List(Value("string")),  # in which ways it differs from the data; of none, whose length is 0, why
}
# Names under which TRL or we pass something else to a reward, and columns that change what TRL does.
RESERVED = FROM_TRL | {"completion", "tools", "image", "images", "environment", "environments", "held_out", *PROMPT}
MEDIA = re.compile(r"\b(Image|Audio|Video|Pdf|Nifti|Mesh|Bio\w+)\(")  # of datasets: each row becomes an object
# What has to go together.
OF_A_TEMPLATE = (
    "model.pretrained_model_name_or_path",
    "prompts.column",
    "prompts.system",
    "training.chat_template_kwargs",
)


@dataclass
class Data:
    """Rows with a column `prompt` of chat messages: to train on, and never trained on; and what became of each row."""

    train: Dataset
    held_out: Dataset
    counts: dict[str, int]
    lengths: np.ndarray  # tokens of each prompt to train on
    longest: int  # tokens of the longest that is asked, those held out and samples.questions included

    def in_words(self) -> str:
        """`291 read: 283 to train on, 8 held out`, and what else there was."""
        some = [f"{count:,} {what}" for what, count in self.counts.items() if count or what == "held out"]
        return f"{some[0]}: {', '.join(some[1:])}"

    def sha256(self) -> str:
        """Of the rows trained on, in their order; of pictures and sounds as they are stored."""
        digest = hashlib.sha256()
        media = [name for name, feature in self.train.features.items() if MEDIA.search(str(feature))]
        plain = self.train.remove_columns(media).iter(1000)
        stored = self.train.with_format("arrow").iter(1000)
        for batch, table in zip(plain, stored, strict=True):
            batch |= table.select(media).to_pydict()
            digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
        return digest.hexdigest()


def load_data(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Data:
    """Load `dataset`, make `prompts` of it with the policy's chat template, hold `samples.held_out` rows out.

    At most a quarter of the questions is held out. A prompt over `prompts.max_length` tokens, the template and its
    generation prompt included, is dropped. So is each further row with a question that is held out.
    """
    rows, column = _with_question_column(settings, read_rows(settings))
    rows = _without_taken_names(rows, column)
    rows = _with_prompts(settings, tokenizer, rows, column)
    lengths = np.array(rows["prompt_length"])
    fates, held_out = _fates(settings, lengths.tolist(), rows["prompt_hash"][:])
    _say_what_is_empty(settings, rows, [row for row, fate in enumerate(fates) if fate == "empty"])
    _say_what_is_read_otherwise(rows, fates)
    fate_of_duplicates = "dropped" if settings.prompts.drop_duplicates else "kept"
    trained_on = {"train"} if settings.prompts.drop_duplicates else {"train", "again"}
    trained = [row for row, fate in enumerate(fates) if fate in trained_on]
    if not trained:
        shortest = lengths[lengths > 0].min()
        raise settings.error("prompts.max_length", f"no prompt is left; the shortest has {shortest} tokens; raise it")
    of = Counter(fates)
    counts = {
        "read": len(rows),
        "to train on": len(trained),
        "held out": len(held_out),
        "empty (dropped)": of["empty"],
        "too long (dropped)": of["too long"],
        "the same as a held-out one (dropped)": of["same as held out"],
        f"duplicate ({fate_of_duplicates})": of["again"],
    }
    rows = rows.remove_columns([*set(rows.column_names) & RESERVED - {"prompt"}])
    longest = max([*lengths[trained + held_out], *_lengths_of_questions(settings, tokenizer)])
    return Data(rows.select(trained), rows.select(held_out), counts, lengths[trained], int(longest))


def prompt_text(turns: Messages, tokenizer: PreTrainedTokenizerBase, template: dict[str, Any]) -> str:
    """What the chat template, which may raise anything, makes of a conversation, its generation prompt included."""
    return tokenizer.apply_chat_template(turns, **template | {"add_generation_prompt": True, "tokenize": False})


def _lengths_of_questions(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of each of samples.questions. The template may refuse one, as these have no system turns of the data."""
    template = settings.training.get("chat_template_kwargs") or {}
    lengths = []
    for question in settings.samples.questions:
        try:
            text = prompt_text(as_messages(question, settings.prompts.system), tokenizer, template)
        except Exception as error:  # a template is code of the user's
            problem = f"{one_line(question, 40)!r} cannot be asked with this template: {in_short(error)}"
            raise settings.error(("samples.questions", "prompts.system"), problem) from error
        lengths.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return lengths


def _with_prompts(settings: Settings, tokenizer: PreTrainedTokenizerBase, rows: Dataset, column: str) -> Dataset:
    """The rows with what becomes of their questions, the columns of PROMPT."""
    template = settings.training.get("chat_template_kwargs") or {}
    feature = rows.features[column]
    as_json = ExactJson("string")

    def prompts(questions: list, numbers: list[int]) -> dict[str, list]:
        made = {name: [] for name in PROMPT}
        texts = []
        for question, number in zip(questions, numbers, strict=True):
            try:
                turns, said = read_messages(without_filling(question, feature), settings.prompts.system)
            except NoMessages as error:
                turns, said = [], [str(error)]
            written = [as_json.encode_example(turn) for turn in turns]
            turns = [as_json.decode_example(turn) for turn in written]  # as the template sees them in training
            try:
                text = prompt_text(turns, tokenizer, template) if turns else ""
            except Exception as error:  # a template is code of the user's
                roles = [turn["role"] for turn in turns]
                problem = f"row {number}, {roles}, is refused by the chat template: {in_short(error)}"
                raise settings.error(OF_A_TEMPLATE, problem) from error
            texts.append(text)
            made["prompt"].append(written)
            made["prompt_said"].append(said)
            made["prompt_hash"].append(xxhash.xxh64_intdigest(text.encode()) >> 1)  # the policy sees these alike
        made["prompt_length"] = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        return made

    return rows.map(
        prompts,
        batched=True,
        with_indices=True,
        input_columns=[column],  # so that no other column is read and written anew
        features=Features({**rows.features, **PROMPT}),
        desc="Chat template",
    )


def _fates(settings: Settings, lengths: list[int], questions: list[int]) -> tuple[list[str], list[int]]:
    """(what becomes of each row: `empty`, `too long`, `held out`, `same as held out`, `again` or `train`, held out)."""
    most = settings.prompts.max_length or max(lengths)
    first_rows = {}  # of each question
    for row, question in enumerate(questions):
        if 0 < lengths[row] <= most:
            first_rows.setdefault(question, row)
    size = min(settings.samples.held_out, len(first_rows) // 4)
    # Whatever training.seed is, so that runs of several seeds are compared on the same questions.
    sample = random.Random(42).sample([*first_rows.values()], size)
    held_out = set(sample)
    fates = []
    for row, question in enumerate(questions):
        if lengths[row] == 0:
            fate = "empty"
        elif lengths[row] > most:
            fate = "too long"
        elif row in held_out:
            fate = "held out"
        elif first_rows[question] in held_out:
            fate = "same as held out"
        elif first_rows[question] != row:
            fate = "again"
        else:
            fate = "train"
        fates.append(fate)
    return fates, sample


def _say_what_is_empty(settings: Settings, rows: Dataset, empty: list[int]) -> None:
    if not empty:
        return
    problem = (rows[empty[0]]["prompt_said"] or [": the chat template makes nothing of it"])[0]
    some = ", ".join(map(str, empty[:5]))
    found = f"no question in {len(empty):,} of {len(rows):,} rows ({some}; row {empty[0]}{problem})"
    if len(empty) == len(rows) or not settings.prompts.drop_empty:
        raise settings.error("prompts.column", f"{found}; fix the data, or drop them with prompts.drop_empty: true")
    print(f"note: {found}; dropped, as prompts.drop_empty says")


def _say_what_is_read_otherwise(rows: Dataset, fates: list[str]) -> None:
    differences = Counter()
    for said, fate in zip(rows["prompt_said"], fates, strict=True):
        if fate != "empty":
            differences.update(dict.fromkeys(said, 1))
    for difference, count in differences.items():
        print(f"note: prompts.column, {count:,} of {len(rows):,} rows: {difference}")


def _without_taken_names(rows: Dataset, column: str) -> Dataset:
    for name, feature in rows.features.items():
        if name == "tools" or MEDIA.search(str(feature)):
            print(f"note: the column {name} is not trained on, as pictures, sounds and tools are not")
        if name in RESERVED and name != column:
            print(f"note: the column {name} is left out of the data, as this name is taken")
            rows = rows.remove_columns(name)
    return rows


def _with_question_column(settings: Settings, rows: Dataset) -> tuple[Dataset, str]:
    """`rows`, renamed as prompts.rename says and with one column of questions, and its name."""
    for old, new in (settings.prompts.rename or {}).items():
        key = f"prompts.rename.{old}"
        if new in rows.column_names:
            raise settings.error(key, f"there is a column {new!r} already")
        try:
            rows = rows.rename_column(old, new)
        except ValueError as error:
            raise settings.error(key, one_line(error)) from error
    columns = settings.prompts.column
    if isinstance(columns, str):
        columns = [columns]
    names = rows.column_names
    for column in columns:
        if column not in names:
            problem = f"there is no column {column!r}; the data have {', '.join(names)}"
            raise settings.error("prompts.column", problem + did_you_mean(column, names, 0.4))
    if columns == ["instruction"] and "input" in names and any(rows["input"]):
        print("note: the column input is no part of the question; prompts.column: [instruction, input] joins the two")
    if len(columns) == 1:
        return rows, columns[0]
    joined = []
    for number, row in enumerate(rows.select_columns(columns)):
        try:
            joined.append("\n\n".join(text for text in row.values() if text and text.strip()))
        except AttributeError as error:
            raise settings.error("prompts.column", f"only texts are joined, not row {number}: {row}") from error
    name = " + ".join(columns)
    return rows.add_column(name, joined), name
