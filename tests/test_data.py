"""The data step: rows of any source become chat prompts, and nothing is lost silently."""

import csv
import json
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from harness.before.data import load_data, token_counts
from harness.errors import UserError
from harness.keys import Prompts, Samples
from harness.settings import Settings


def load_prompts(source, prompts, tokenizer, held_out=0):
    settings = Settings({}, source, prompts, {}, {}, None, Samples([], held_out), places={})
    data = load_data(settings, tokenizer)
    return data.train, data.counts["too long (dropped)"]


@pytest.fixture(scope="module")
def tokenizer(policy):
    return AutoTokenizer.from_pretrained(policy)


@pytest.fixture
def source(tmp_path, rows):
    """Ten short questions and two long ones, in the columns of auto-wiki-qa."""
    path = tmp_path / "rows.jsonl"
    long = [{**row, "query": row["query"] * 200} for row in rows[10:12]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:10] + long))
    return {"path": "json", "data_files": str(path), "split": "train"}


def test_questions_become_messages_and_every_other_column_stays(source, tokenizer, rows):
    system, _ = load_prompts(source, Prompts("query", system="日本語で答える"), tokenizer)
    assert system["prompt"][3][0] == {"role": "system", "content": "日本語で答える"}
    dataset, _ = load_prompts(source, Prompts("query"), tokenizer)
    assert dataset["prompt"][0] == [{"role": "user", "content": rows[0]["query"]}]
    assert set(dataset.column_names) == {*rows[0], "prompt"}
    assert dataset["answer"] == [row["answer"] for row in rows[:12]]


def test_prompts_are_counted_as_upstream_counts_them(tokenizer, rows):
    texts = [row["query"] for row in rows] + ["<|im_end|>", " e\u0301 👩‍👩‍👧\r\n\n ", "ｶﾞ x" * 500]
    asked = [[{"role": role, "content": text}] for text in texts for role in ("user", "system")]
    expected = [len(ids) for ids in tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]]
    tokenizer.backend_tokenizer.enable_truncation(5)  # as a tokenizer.json may have it, which upstream undoes
    tokenizer.backend_tokenizer.enable_padding()
    slow = SimpleNamespace(apply_chat_template=tokenizer.apply_chat_template)
    assert token_counts(asked, tokenizer, {}) == token_counts(asked, slow, {}) == expected


def test_long_prompts_are_dropped_and_counted(source, tokenizer):
    dataset, dropped = load_prompts(source, Prompts("query", max_length=100), tokenizer)
    assert (len(dataset), dropped) == (10, 2)
    # The limit is inclusive, and counts the template and the generation prompt.
    tokens = tokenizer.apply_chat_template(list(dataset["prompt"]), add_generation_prompt=True)["input_ids"]
    longest = max(len(ids) for ids in tokens)
    assert len(load_prompts(source, Prompts("query", max_length=longest), tokenizer)[0]) == 10
    with pytest.raises(UserError, match="no prompt is left; the shortest of 12 has 11 tokens"):
        load_prompts(source, Prompts("query", max_length=longest - 1), tokenizer)


def test_limit_reads_the_first_rows_which_streaming_has_to_have(source, tokenizer, rows):
    for streaming in (False, True):
        dataset, _ = load_prompts({**source, "streaming": streaming}, Prompts("query", limit=3), tokenizer)
        assert dataset["query"] == [row["query"] for row in rows[:3]], streaming
    with pytest.raises(UserError, match="prompts.limit"):
        load_prompts({**source, "streaming": True}, Prompts("query"), tokenizer)


def test_csv_and_parquet(tmp_path, tokenizer, rows):
    from datasets import Dataset

    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["query", "answer"], extrasaction="ignore", delimiter=";")
        writer.writeheader()
        writer.writerows(rows[:5])
    Dataset.from_list(rows[:5]).to_parquet(tmp_path / "rows.parquet")
    for source in (
        {"path": "csv", "data_files": str(tmp_path / "rows.csv"), "delimiter": ";"},
        {"path": "parquet", "data_files": str(tmp_path / "rows.parquet")},
    ):
        dataset, _ = load_prompts({**source, "split": "train"}, Prompts("query"), tokenizer)
        assert dataset["answer"] == [row["answer"] for row in rows[:5]]
