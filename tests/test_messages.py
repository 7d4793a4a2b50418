"""Messages of every usual shape reach the chat template whole, or are refused by row, turn and key."""

import json
import shutil

import pytest
from conftest import ROOT, refused
from datasets import Dataset
from transformers import AutoTokenizer

import train_grpo
from harness.before.data import load_data, prompt_text
from harness.errors import UserError
from harness.settings import read_settings

EVERY_KEY = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}"


def loaded(tokenizer, file, *arguments):
    """Of the data of `file`, whose column of messages is `m`."""
    settings = [
        "--dataset.path",
        file,
        "--prompts.column",
        "m",
        "--samples.held_out",
        "0",
        "--prompts.max_length",
        "999",
    ]
    return load_data(
        read_settings(["--config", str(ROOT / "demo/config.yaml"), *map(str, [*settings, *arguments])]), tokenizer
    )


def written(file, questions):
    rows = [{"m": question, "answer": "3776"} for question in questions]
    if file.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(file)
    else:
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def tokenizer(policy):
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = EVERY_KEY
    return tokenizer


def user(content, **others):
    return {"role": "user", "content": content, **others}


def call(arguments, **others):
    """An assistant's turn that calls a tool."""
    calls = [{"id": "1", "type": "function", "function": {"name": "height", "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls, **others}


TOOL = {"role": "tool", "content": "3776", "name": "height", "tool_call_id": "1"}
CALLED = {**call({"of": "富士山"}), "content": ""}  # not None, which many templates would write out
IMAGE = {"type": "image_url", "image_url": {"url": "a.png"}}
Q, A = "高さは?", "3776mです。"
ANSWER = {"role": "assistant", "content": A}
CHAT = [user("x"), ANSWER, user(Q)]
# A question, and the turns that become of it and what is said of it, or how it is refused behind "row 0"
SHAPES = {
    "text": (Q, [user(Q)]),
    "turns": (CHAT, CHAT),
    "tools": ([user(Q), call({"of": "富士山"}), TOOL], [user(Q), CALLED, TOOL]),
    "a name": ([user(Q, name="taro")], [user(Q, name="taro")]),
    "a null of OpenAI's own library": ([user(Q, tool_calls=None, refusal=None)], [user(Q)]),
    "a call without content": (
        [user(Q), {k: v for k, v in CALLED.items() if k != "content"}, TOOL],
        [user(Q), CALLED, TOOL],
    ),
    "a tool that says nothing": (
        [user(Q), CALLED, {**TOOL, "content": ""}],
        [user(Q), CALLED, {**TOOL, "content": ""}],
    ),
    "parts": (
        [user([{"type": "text", "text": "富士山の"}, {"type": "text", "text": Q}])],
        [user("富士山の" + Q)],
        "joined",
    ),
    "parts of a newer interface": ([user([{"type": "input_text", "text": Q}])], [user(Q)], "joined"),
    "ShareGPT": (
        [{"from": "system", "value": "短く"}, {"from": "human", "value": Q}, {"from": "gpt", "value": A}],
        [{"role": "system", "content": "短く"}, user(Q)],
        "from is read as role",
        "value is read as content",
        "the role human is read as user",
        "it is cut off",
    ),
    "ShareGPT with tools": (
        [{"from": "human", "value": "x"}, {"from": "chatgpt", "value": A}, {"from": "observation", "value": "3776"}],
        [user("x"), ANSWER, {"role": "tool", "content": "3776"}],
    ),
    "ShareGPT's roles in OpenAI's shape": (
        [{"role": "human", "content": Q}],
        [user(Q)],
        "the role human is read as user",
    ),
    "roles of other models": ([user("x"), {"role": "model", "content": A}, user(Q)], CHAT),
    "capital letters": (
        [{"Role": "User", "Content": Q}],
        [user(Q)],
        "Role is read as role",
        "the role User is read as user",
    ),
    "a single message": (user(Q), [user(Q)]),
    "messages one deeper": ({"messages": [user(Q)]}, [user(Q)]),
    "ShareGPT one deeper": ({"conversations": [{"from": "human", "value": Q}]}, [user(Q)]),
    "lists in a mapping": ({"role": ["user", "assistant", "user"], "content": ["x", A, Q]}, CHAT),
    "JSON as text": (json.dumps([user("x"), CALLED, TOOL]), [user("x"), CALLED, TOOL], "text that holds messages"),
    "Python as text": (str([user(Q), ANSWER]), [user(Q)], "text that holds messages"),
    "JSON that is no messages": ('[1, 2] と {"role": 3} は?', [user('[1, 2] と {"role": 3} は?')]),
    "a list of numbers": ("[1, 2]", [user("[1, 2]")]),
    "two answers at the end": ([user(Q), ANSWER, ANSWER], [user(Q)]),
    "null content": ([user("x"), {"role": "assistant", "content": None}, user(Q)], ", turn 1: content is null"),
    "null content of a user": ([user(None)], ", turn 0: content is null"),
    "a tool's null": ([user(Q), CALLED, {**TOOL, "content": None}], ", turn 2: content is null"),
    "null value": ([{"from": "human", "value": None}], ", turn 0: value is null"),
    "empty content": ([user(" ")], ", turn 0: content is empty"),
    "empty system": ([{"from": "system", "value": ""}, {"from": "human", "value": Q}], ", turn 0: value is empty"),
    "no content": ([{"role": "user", "text": Q}], ", turn 0: content is null or missing; the turn has role, text"),
    "an image": ([user([{"type": "text", "text": Q}, IMAGE])], ", turn 0: content: part 1 is of type image_url"),
    "an image alone": ([user([{"type": "image"}])], ", turn 0: content: part 0 is of type image"),
    "sound": (
        [user("x"), user([{"type": "input_audio", "input_audio": {"data": ""}}])],
        ", turn 1: content: part 0 is of type input_audio",
    ),
    "parts that are words": ([user(["x", "y"])], ", turn 0: content: part 0 is of type str"),
    "no parts": ([user([])], ", turn 0: content is the list '[]', not text"),
    "a mapping for content": ([user({"text": Q})], ", turn 0: content is the dict "),
    "a number": ([user(3776)], ", turn 0: content is the int '3776', not text"),
    "a role of nobody's": (
        [user("x"), {"role": "narrator", "content": Q}],
        ", turn 1: role is 'narrator'; it should be one of system, user,",
    ),
    "a call as a role": (
        [{"from": "human", "value": Q}, {"from": "function_call", "value": "{}"}],
        ", turn 1: from is 'function_call'",
    ),
    "a null role": ([{"role": None, "content": Q}], ", turn 0: role is null"),
    "no role": ([{"content": Q}], ", turn 0: role is null or missing; the turn has content"),
    "turns that are text": ([Q, A, Q], ", turn 0: is the str '高さは?', not a mapping with role and content"),
    "a turn that is null": ([user("x"), None], ", turn 1: is null"),
    "nothing": ([], " is an empty list"),
    "null": (None, " is null"),
    "spaces": ("  ", " is empty"),
    "only a number": (3776, " holds the int '3776', neither text nor messages"),
    "only an answer": ([ANSWER], ": no turn before the assistant's is a user's"),
    "only a system turn": ([{"role": "system", "content": "短く"}], ": no turn before the assistant's is a user's"),
    "messages beside others": (
        {"messages": [user(Q)], "id": 3},
        " holds a mapping with the keys messages, id, not messages",
    ),
    "text cut short": ("[{'role': 'user', 'content': 'x'} ...]", " looks like messages, but is neither JSON nor"),
}


def test_every_shape_works_or_is_refused_by_row_turn_and_key(tokenizer, tmp_path, capsys):
    wrong = []
    for i, (name, (question, expected, *notes)) in enumerate(SHAPES.items()):
        try:
            got = loaded(tokenizer, written(tmp_path / f"{i}.jsonl", [question])).train[0]["prompt"]
            right = got == expected
        except UserError as error:
            got = str(error)
            right = isinstance(expected, str) and f"row 0{expected}" in got and "\n" not in got
        out = capsys.readouterr().out
        if not right or [words for words in notes if words not in out]:
            wrong.append((name, got, out))
    assert wrong == []


def test_what_other_rows_have_is_no_key_of_a_turn(tokenizer, tmp_path):
    """Also where a file's columns are structs, whose keys all rows share; what the template counts is what trains."""
    rows = [[user(Q)], [user("x", name="taro"), call({"of": "富士山"}), TOOL], [user("y"), call({"in": 3}), TOOL]]
    expected = [
        [user(Q)],
        [user("x", name="taro"), CALLED, TOOL],
        [user("y"), {**call({"in": 3}), "content": ""}, TOOL],
    ]
    for ending in ("jsonl", "parquet"):
        data = loaded(tokenizer, written(tmp_path / f"q.{ending}", rows))
        assert data.train["prompt"][:] == expected, ending
        lengths = [
            len(tokenizer(text)["input_ids"])
            for text in [prompt_text(turns, tokenizer, {}) for turns in data.train["prompt"]]
        ]
        assert data.lengths.tolist() == lengths, ending
    numbers = written(tmp_path / "numbers.parquet", [[user(Q), call({"of": [1 / 3, 3.141592653589793, 1e-12]}), TOOL]])
    data = loaded(tokenizer, numbers)  # none is rounded, and none is another than the one that was counted
    (asked,) = data.train["prompt"][:]
    found = asked[1]["tool_calls"][0]["function"]["arguments"]["of"]
    assert found == pytest.approx([1 / 3, 3.141592653589793, 1e-12], rel=1e-14)
    assert data.lengths.tolist() == [len(tokenizer(prompt_text(asked, tokenizer, {}))["input_ids"])]
    late = loaded(tokenizer, written(tmp_path / "late.jsonl", [[user(Q)]] * 1000 + rows[1:2]))  # in a batch of its own
    assert late.train[0]["prompt"] == [user(Q)] and late.train[1000]["prompt"] == expected[1]
    nulls = [[user(Q), call({"of": None}), TOOL], [user(Q), call({"at": 1}), TOOL]]  # a null that the user wrote
    data = loaded(tokenizer, written(tmp_path / "null.jsonl", nulls))
    assert data.train[0]["prompt"][1]["tool_calls"] == call({"of": None})["tool_calls"]


def test_questions_that_the_template_shows_alike_are_the_same_question(policy, tmp_path):
    rows = [[user(f"{i}番目の山は?", id=f"{i} {j}")] for i in range(8) for j in range(2)]
    data = loaded(AutoTokenizer.from_pretrained(policy), written(tmp_path / "q.jsonl", rows), "--samples.held_out", "2")
    held_out = {prompt[0]["content"] for prompt in data.held_out["prompt"]}
    assert len(held_out) == 2 and not held_out & {prompt[0]["content"] for prompt in data.train["prompt"]}


def test_dropped_rows_are_named_and_a_system_turn_of_the_datas_own_is_said(tokenizer, tmp_path, capsys):
    own = [{"role": "system", "content": "短く"}, user(Q)]
    file = written(tmp_path / "q.jsonl", [[user(Q)], [user(None)], own, [user(None)]])
    loaded(tokenizer, file, "--prompts.drop_empty", "true", "--prompts.system", "日本語で")
    out = capsys.readouterr().out
    assert "note: 2 of 4 rows hold no question (rows 1, 3; row 1, turn 0: content is null)" in out
    assert "they are dropped, as prompts.drop_empty says" in out
    assert "note: prompts.column, 1 of 4 rows: a system turn of the data's own stays" in out


NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + EVERY_KEY


def test_a_run_on_calls_of_tools_trains_and_its_own_questions_meet_the_template_before_it(tiny, policy, rows, tmp_path):
    turns = [
        [{"role": "system", "content": "短く"}, user(row["query"]), call({"of": row["query"]}), TOOL] for row in rows
    ]
    arguments = [*tiny, "--dataset.data_files", str(written(tmp_path / "q.jsonl", turns)), "--prompts.column", "m"]
    arguments += ["--training.max_steps", "1", "--samples.held_out", "2", "--prompts.max_length", "999"]
    arguments += ["--rewards.answer_reward.weight", "0"]
    train_grpo.main([*arguments, "--training.log_completions", "true"])
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").open(encoding="utf-8")]
    assert {sample["question"] for sample in samples if sample["held_out"]} == {"3776"}
    shutil.copytree(policy, tmp_path / "policy")
    (tmp_path / "policy/chat_template.jinja").write_text(NEEDS_SYSTEM)
    arguments += ["--model.pretrained_model_name_or_path", str(tmp_path / "policy"), "--check"]
    arguments += ["--training.output_dir", str(tmp_path / "other")]
    assert "samples.questions: the template of " in (message := refused(arguments)) and "no system turn" in message
    train_grpo.main([*arguments, "--prompts.system", "短く"])
