"""The data step: rows of any source become chat prompts, and nothing is lost silently."""

import json
import re

import pytest
from conftest import ROOT
from transformers import AutoTokenizer

from harness.before.data import load_data
from harness.errors import UserError
from harness.settings import read_settings


@pytest.fixture
def tokenizer(policy):
    return AutoTokenizer.from_pretrained(policy)


@pytest.fixture
def load(tmp_path, rows, tokenizer):
    """Of ten short questions, with more in their columns, and two long ones."""
    path = tmp_path / "rows.jsonl"
    long = [{**row, "query": row["query"] * 200} for row in rows[10:12]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:10] + long))
    demo = ["--config", ROOT / "demo/config.yaml", "--dataset.path", path]
    demo += ["--samples.held_out", 0, "--prompts.max_length", 9999]
    return lambda *arguments: load_data(read_settings([*map(str, [*demo, *arguments])]), tokenizer)


def test_prompts_are_counted_as_upstream_counts_them_with_the_runs_template(load, tmp_path, tokenizer, rows):
    texts = [row["query"] for row in rows] + ["<|im_end|>", " e\u0301 👩‍👩‍👧\r\n\n ", "ｶﾞ x" * 500]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"query": text}) + "\n" for text in texts))
    asked = [[{"role": "user", "content": text}] for text in texts]
    expected = [len(ids) for ids in tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]]
    tokenizer.backend_tokenizer.enable_truncation(5)  # as a tokenizer.json may have it, which upstream undoes
    tokenizer.backend_tokenizer.enable_padding()
    assert load().lengths.tolist() == expected
    assert len(load("--prompts.max_length", max(expected)).train) == len(texts)  # it is inclusive
    tokenizer.chat_template += "{% if think %}{{ 'think ' * think }}{% endif %}"
    thinking = ["--training.chat_template_kwargs", "{think: 3, add_generation_prompt: true}"]
    assert (load(*thinking).lengths > expected).all()


def test_limit_reads_the_first_rows_which_streaming_has_to_have(load, rows):
    for streaming in ("false", "true"):
        dataset = load("--dataset.streaming", streaming, "--prompts.limit", 3, "--prompts.system", "短く").train
        assert set(dataset.column_names) == {*rows[0], "prompt"}
        asked = [[{"role": "system", "content": "短く"}, {"role": "user", "content": row["query"]}] for row in rows[:3]]
        assert dataset["prompt"][:] == asked, streaming
    with pytest.raises(UserError, match="prompts.limit"):
        load("--dataset.streaming", "true")


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATE = "{% if messages | length > 1 %}{{ raise_exception('roles must alternate') }}{% endif %}"
ASKED = "{% for m in messages %}{{ m.content }}{% endfor %}"
THINK = ["--training.chat_template_kwargs", "{think: 1}"]
TEMPLATES = [  # the policy's template, what is laid over the demo's settings, key and words of the message
    (NO_SYSTEM + ASKED, ["--prompts.system", "短く"], "prompts.system: row 0, .*System role not supported"),
    (ALTERNATE + ASKED, ["--prompts.column", "turns"], "prompts.column: row 3, .*'user', 'user'.*roles must alternate"),
    ({"a": ASKED, "b": ASKED}, [], "row 0, .*chat template"),
    ("{% for key, value in messages[0].content|items %}{% endfor %}", [], "row 0, .*pairs from a mapping"),
    ("", [], "prompts.column: .* 20 of 20 .*row 0: .*template"),
    ("{{ raise_exception('no') if think }}" + ASKED, THINK, "training.chat_template_kwargs: row 0, .*no"),
    (NO_SYSTEM + ASKED, [], None),
]


def test_what_a_chat_template_refuses_is_named(load, tmp_path, tokenizer):
    lines = [{"query": str(i), "turns": [{"role": "user", "content": "?"}] * (1 + (i == 3))} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    wrong = []
    for template, arguments, expected in TEMPLATES:
        tokenizer.chat_template, said = template, None
        try:
            load(*arguments)
        except UserError as error:
            said = str(error)
        if (said is None) != (expected is None) or (expected and not re.search(expected, said)):
            wrong.append((arguments, said))
    assert wrong == []
