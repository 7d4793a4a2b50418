"""Messages of every usual shape reach the chat template whole, or are refused by row, turn and key."""

import json
import re
import shutil

import pytest
from conftest import ROOT, refused
from datasets import Dataset
from transformers import AutoTokenizer

import train_grpo
from harness.before.data import load_data, prompt_text
from harness.before.messages import NoMessages, read_messages
from harness.errors import UserError
from harness.settings import read_settings

EVERY_KEY = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}"
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + EVERY_KEY


def loaded(tokenizer, file, *arguments):
    """Of the data of `file`, whose column of messages is `m`."""
    settings = f"--dataset.path {file} --prompts.column m --samples.held_out 0 --prompts.max_length 999".split()
    settings = ["--config", str(ROOT / "demo/config.yaml"), *settings, *arguments]
    return load_data(read_settings(settings), tokenizer)


def written(file, questions):
    rows = [{"m": question, "answer": "3776"} for question in questions]
    if file.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(file)
    else:
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def tokenizer(policy):
    return AutoTokenizer.from_pretrained(policy, chat_template=EVERY_KEY)


def user(content, **others):
    return {"role": "user", "content": content, **others}


def call(arguments):
    """An assistant's turn that calls a tool."""
    calls = [{"id": "1", "type": "function", "function": {"name": "height", "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


TOOL = {"role": "tool", "content": "3776", "name": "height", "tool_call_id": "1"}
CALLED = {**call({"of": "富士山"}), "content": ""}  # not None, which many templates would write out
IMAGE = {"type": "image_url", "image_url": {"url": "a.png"}}
Q, A = "高さは?", "3776mです。"
ANSWER = {"role": "assistant", "content": A}
CHAT = [user("x"), ANSWER, user(Q)]
SYSTEM = {"role": "system", "content": "短く"}
SHARE = [{"from": "system", "value": "短く"}, {"from": "human", "value": Q}, {"from": "gpt", "value": A}]
SEEN = {"from": "observation", "value": "3776"}
SHARE_TOOLS = [{"from": "human", "value": "x"}, {"from": "chatgpt", "value": A}, SEEN]
SHARED = ("from is read as role", "value is read as content", "the role human is read as user")
SAYS_NOTHING = {**TOOL, "content": ""}
PARTS = [{"type": "text", "text": "富士山の"}, {"type": "text", "text": Q}]
NO_MESSAGES = '[1, 2] と {"role": 3} は?'
# A question, the turns that become of it, and all that is said of it
ACCEPTED = {
    "text": (Q, [user(Q)]),
    "turns": (CHAT, CHAT),
    "tools": ([user(Q), call({"of": "富士山"}), TOOL], [user(Q), CALLED, TOOL]),
    "a tool that says nothing": ([user(Q), CALLED, SAYS_NOTHING], [user(Q), CALLED, SAYS_NOTHING]),
    "parts": ([user(PARTS)], [user("富士山の" + Q)], "content in several parts is joined"),
    "ShareGPT": (SHARE, [SYSTEM, user(Q)], *SHARED, "gpt is read as assistant", "it is dropped"),
    "ShareGPT with tools": (SHARE_TOOLS, [user("x"), ANSWER, {"role": "tool", "content": "3776"}], *SHARED,
                            "the role chatgpt is read as assistant", "the role observation is read as tool"),
    "capital letters": ([{"Role": "User", "Content": Q, "toolID": 1}], [user(Q, toolID=1)],
                        "Role is read as role", "Content is read as content", "the role User is read as user"),
    "a single message": (user(Q), [user(Q)]),
    "messages one deeper": ({"messages": [user(Q)]}, [user(Q)]),
    "lists in a mapping": ({"role": ["user", "assistant", "user"], "content": ["x", A, Q]}, CHAT),
    "JSON as text": (json.dumps([user("x"), CALLED, TOOL]), [user("x"), CALLED, TOOL], "text that contains messages"),
    "Python as text": (str([user(Q), ANSWER]), [user(Q)], "text that contains messages", "it is dropped"),
    "JSON that is no messages": (NO_MESSAGES, [user(NO_MESSAGES)]),
    "two answers at the end": ([user(Q), ANSWER, ANSWER], [user(Q)], "it is dropped"),
}  # fmt: skip
REFUSED = {  # the place and a word, and questions
    ", turn 0: content: .* required": [
        [user(None)], [{"from": "human", "value": None}], [{"role": "user", "text": Q}]],
    ", turn 0: .*content is empty": [
        "  ", [user(" ")], [user(" ", name="taro")], [{"from": "system", "value": ""}, user(Q)]],
    ", turn 0: content: .* string": [
        [user([{"type": "text", "text": Q}, IMAGE])], [user([{"type": "image"}])], [user(["x", "y"])], [user([])],
        [user({"text": Q})], [user(3776)]],
    ", turn 0: role: .*'user'": [
        [{"role": None, "content": Q}], [{"content": Q}], {"messages": [user(Q)], "id": 3},
        {"role": ["user", "user"], "content": ["x"]}],
    ", turn 0: .*高さは": [[Q, A, Q]],
    ", turn 1: content: .* required": [[user("x"), {"role": "assistant", "content": None}, user(Q)]],
    ", turn 1: content: .* string.*audio": [[user("x"), user([{"type": "input_audio", "input_audio": {}}])]],
    ", turn 1: role: .*'user'.*narrator": [[user("x"), {"role": "narrator", "content": Q}]],
    ", turn 1: role: .*'function_call'": [[user(Q), {"from": "function_call", "value": "{}"}]],
    ", turn 2: content: .* required": [[user(Q), CALLED, {**TOOL, "content": None}]],
    ": no turn .* user's": [[], [ANSWER], [SYSTEM]],
    ": (.* list, got|is null)": [None, 3776],
    " looks like messages": ["[{'role': 'user', 'content': 'x'} ...]"],
}  # fmt: skip


def test_every_shape_is_read_or_refused_by_turn_and_key_and_what_is_read_otherwise_is_said():
    wrong = []
    for name, (question, expected, *differences) in ACCEPTED.items():
        got, said = read_messages(question, None)
        of_each = all(any(words in difference for difference in said) for words in differences)
        if got != expected or len({*said}) != len(differences) or not of_each:
            wrong.append((name, got, said))
    for expected, question in [(expected, each) for expected, questions in REFUSED.items() for each in questions]:
        with pytest.raises(NoMessages) as error:
            read_messages(question, None)
        if not re.fullmatch(f"{expected}.*", str(error.value)):
            wrong.append((question, str(error.value)))
    assert wrong == []


def test_all_shapes_of_a_file_become_prompts_and_rows_are_counted(tokenizer, tmp_path, capsys):
    shapes = [shape for shape in ACCEPTED.values() if not isinstance(shape[0], str)]
    data = loaded(tokenizer, written(tmp_path / "q.jsonl", [question for question, *_ in shapes]))
    assert data.train["prompt"][:] == [expected for _, expected, *_ in shapes]
    of = sum("it is dropped" in differences for _, _, *differences in shapes)
    assert f"note: prompts.column, {of} of {len(shapes)} rows: where the last" in capsys.readouterr().out
    questions = [[user(Q)], [user(None)], [SYSTEM, user(Q)], [user(None)], [{"role": "human", "content": A}] * 2]
    file = written(tmp_path / "others.jsonl", questions)
    empty = r"no question in 2 of 5 rows \(1, 3; row 1, turn 0: content: .*prompts.drop_empty"
    with pytest.raises(UserError, match=f"prompts.column: {empty}"):
        loaded(tokenizer, file)
    loaded(tokenizer, file, "--prompts.drop_empty", "true", "--prompts.system", "日本語で")
    assert re.search(f"note: {empty}", out := capsys.readouterr().out)
    for said in ("a system turn of the data's own stays", "the role human is read as user"):
        assert f"note: prompts.column, 1 of 5 rows: {said}" in out


def test_what_other_rows_have_is_no_key_of_a_turn(tokenizer, tmp_path):
    """Also where a file's columns are structs, whose keys all rows share; what the template counts is what trains."""
    rows = [[user(Q)], [user("x", name="taro"), call({"of": "富士山"}), TOOL], [user("y"), call({"in": 3}), TOOL]]
    called = {**call({"in": 3}), "content": ""}
    expected = [[user(Q)], [user("x", name="taro"), CALLED, TOOL], [user("y"), called, TOOL]]
    for ending in ("jsonl", "parquet"):
        data = loaded(tokenizer, written(tmp_path / f"q.{ending}", rows))
        assert data.train["prompt"][:] == expected, ending
        texts = [prompt_text(turns, tokenizer, {}) for turns in expected]
        assert data.lengths.tolist() == [len(tokenizer(text)["input_ids"]) for text in texts], ending
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


def test_a_run_on_calls_of_tools_trains_and_its_own_questions_meet_the_template_before_it(tiny, policy, rows, tmp_path):
    turns = [[SYSTEM, user(row["query"]), call({"of": row["query"]}), TOOL] for row in rows]
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
    assert "samples.questions: " in (message := refused(arguments)) and "no system turn" in message
    train_grpo.main([*arguments, "--prompts.system", "短く"])
