"""A user's own data, through the real command line: files of every format, chat data, other names, counts."""

import csv
import datetime
import decimal
import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, refused
from datasets import Dataset
from transformers import AutoTokenizer

import rewards
import train_grpo
from harness.before.data import load_data
from harness.errors import UserError
from harness.rewards_file import reward_functions
from harness.settings import read_settings


def loaded(policy, *arguments):
    settings = read_settings(["--config", str(ROOT / "demo/config.yaml"), *map(str, arguments)])
    return load_data(settings, AutoTokenizer.from_pretrained(policy))


def questions(data) -> set[str]:
    return {row["prompt"][-1]["content"] for part in (data.train, data.held_out) for row in part}


def write(path, rows):
    """The questions and answers of `rows`, in the format that the ending of `path` says."""
    rows = [{"query": row["query"], "answer": row["answer"]} for row in rows]
    path.parent.mkdir(exist_ok=True)
    if path.suffix.lower() in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["query", "answer"], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".txt":
        path.write_text("".join(row["query"] + "\n" for row in rows), encoding="utf-8")
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(lines) if path.suffix == ".jsonl" else f"[{', '.join(lines)}]"
        path.write_text(text, encoding="utf-8")


def test_a_file_of_any_format_is_found_by_its_ending(policy, rows, tmp_path):
    wrong = []
    for ending in ("csv", "tsv", "json", "jsonl", "parquet", "txt", "CSV"):
        write(tmp_path / f"q.{ending}", rows[:20])
        column = ["--prompts.column", "text"] if ending == "txt" else []
        for key in ("path", "data_files"):
            data = loaded(policy, f"--dataset.{key}", tmp_path / f"q.{ending}", *column)
            wrong += [] if questions(data) == {row["query"] for row in rows[:20]} else [(ending, key)]
    assert not wrong


def test_several_files_a_glob_and_a_folder(policy, rows, tmp_path):
    for i in range(2):
        write(tmp_path / f"mine/part{i}.csv", rows[10 * i : 10 * i + 10])
    expected = {row["query"] for row in rows[:20]}
    several = f"[{tmp_path}/mine/part0.csv, {tmp_path}/mine/part1.csv]"
    for source in (["--dataset.data_files", several], ["--dataset.path", f"{tmp_path}/mine/*.csv"]):
        assert questions(loaded(policy, *source)) == expected
    assert questions(loaded(policy, "--dataset.path", tmp_path / "mine")) == expected


def test_other_data_in_a_file_of_settings_leave_nothing_of_the_articles(tmp_path, rows):
    write(tmp_path / "q.csv", rows[:20])
    (tmp_path / "mine.yaml").write_text(f"dataset: {{path: {tmp_path}/q.csv}}\n")
    settings = read_settings(["--config", str(tmp_path / "mine.yaml")])
    assert settings.dataset == {
        "split": "train",
        "index_col": False,
        "path": "csv",
        "data_files": f"{tmp_path}/q.csv",
    }
    assert read_settings(["--dataset.streaming", "true"]).dataset["path"] == "cl-nagoya/auto-wiki-qa"


CHAT = [{"role": "user", "content": "富士山の高さは?"}, {"role": "assistant", "content": "3776メートルです。"}]
SYSTEM = {"role": "system", "content": "短く"}
CONVERSATIONS = {  # turns of a row, what becomes of them with prompts.system "日本語で"
    "the answer is cut off": (CHAT, [{"role": "system", "content": "日本語で"}, CHAT[0]]),
    "a question alone": (CHAT[:1], [{"role": "system", "content": "日本語で"}, CHAT[0]]),
    "a system prompt of its own": ([SYSTEM, *CHAT], [SYSTEM, CHAT[0]]),
    "several turns": ([*CHAT, CHAT[0]], [{"role": "system", "content": "日本語で"}, *CHAT, CHAT[0]]),
}


def test_conversations_pass_through(policy, tmp_path, capsys):
    for column in ("messages", "prompt"):
        for name, (turns, expected) in CONVERSATIONS.items():
            file = tmp_path / f"{column} {name}.jsonl"
            file.write_text(json.dumps({column: turns, "answer": "3776"}) + "\n")
            source = ["--dataset.path", file, "--prompts.column", column, "--samples.held_out", "0"]
            data = loaded(policy, *source, "--prompts.system", "日本語で")
            assert data.train[0]["prompt"] == expected, (column, name)
            cut_off = "it is cut off" in capsys.readouterr().out
            assert cut_off is (turns[-1]["role"] == "assistant"), (column, name)


def test_empty_conversations_count_as_empty_questions(policy, tmp_path):
    for i, turns in enumerate([[], None, [{"role": "user", "content": None}], CHAT[1:]]):
        lines = [{"messages": CHAT, "answer": "3776"}] * 20 + [{"messages": turns, "answer": "3776"}]
        file = tmp_path / f"{i}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        source = ["--dataset.path", file, "--prompts.column", "messages", "--samples.held_out", "0"]
        with pytest.raises(UserError, match=r"1 of 21 rows hold no question \(rows 20"):
            loaded(policy, *source)
        assert loaded(policy, *source, "--prompts.drop_empty", "true").counts["empty (dropped)"] == 1, turns


def test_training_on_conversations_with_columns_of_any_name_and_without_some_answers(tiny, rows, tmp_path):
    """Columns by names that TRL passes to rewards too, or by which it trains otherwise, or that our settings have."""
    others = {"weight": 1, "tools": [1], "messages": CHAT}
    lines = [{"prompts": [{**CHAT[0], "content": row["query"]}, CHAT[1]], **others} for row in rows]
    answers = [(row["answer"], None, "")[i % 3] for i, row in enumerate(rows)]
    lines = [{**line, "answer": answer} for line, answer in zip(lines, answers, strict=True)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [*tiny, "--dataset.data_files", str(tmp_path / "q.jsonl"), "--prompts.column", "prompts"]
    train_grpo.main(arguments)
    assert (tmp_path / "run/model.safetensors").exists()


def test_data_without_any_question_are_refused_whatever_is_dropped(tiny, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"query": 3, "answer": "x"}\n' * 20)
    message = refused([*tiny, "--dataset.data_files", str(tmp_path / "q.jsonl"), "--prompts.drop_empty", "true"])
    assert "prompts.column: 20 of 20 rows hold no question" in message


def test_prompts_are_counted_with_the_runs_template(policy, tmp_path, rows):
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template += "{% if think %}{{ 'think ' * think }}{% endif %}"
    settings = read_settings(["--config", str(ROOT / "demo/config.yaml")])
    plain = load_data(settings, tokenizer).lengths
    settings.training["chat_template_kwargs"] = {"think": 3, "add_generation_prompt": True}
    assert (load_data(settings, tokenizer).lengths > plain).all()


def test_columns_find_the_rewards_under_other_names(tiny, rows, tmp_path, capsys):
    lines = [{"query": row["query"], "expected": row["answer"]} for row in rows]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [*tiny, "--dataset.data_files", str(tmp_path / "q.jsonl"), "--check"]
    assert "needs the column answer, but the data have query, expected; rename one" in refused(arguments)
    train_grpo.main([*arguments, "--prompts.rename", "{expected: answer}"])
    assert "4 x answer_reward" in capsys.readouterr().out
    train_grpo.main([*arguments, "--rewards.answer_reward.weight", "0"])
    plan = capsys.readouterr().out
    assert "note: answer_reward, of weight 0, is left out, as the data have no column answer" in plan
    assert "x answer_reward" not in plan
    renames = {"{wanted: answer}": "there is no column 'wanted'"}
    renames["{expected: query}"] = "there is a column 'query' already"
    renames["{expected: a, query: a}"] = "there is a column 'a' already"
    for rename, words in renames.items():
        assert words in refused([*arguments, "--prompts.rename", rename])


ENTRIES = "query,answer\n" + "".join(f"{i}番目の山は?,{i}\n" for i in range(40))
FILES = {  # its name, its bytes, the answers or words of the message
    "numbers": ("q.csv", ENTRIES.encode(), [*map(str, range(40))]),
    "a CSV of Windows": ("q.csv", ENTRIES.encode("cp932"), "dataset.*: .* is not UTF-8; .* dataset.encoding"),
    "JSON of Windows": ("q.jsonl", '{"query": "山", "answer": "山"}\n'.encode("cp932") * 40, "is not UTF-8"),
    "a spreadsheet": ("q.xlsx", b"PK", "is of no known format; use .csv"),
}  # fmt: skip


def test_files_as_other_programs_write_them(policy, tmp_path):
    wrong = []
    for about, (name, content, expected) in FILES.items():
        (tmp_path / about).mkdir()
        (tmp_path / about / name).write_bytes(content)
        source = ["--dataset.path", tmp_path / about / name, "--samples.held_out", "0"]
        try:
            got = loaded(policy, *source).train["answer"][:]
            right = got == expected
        except UserError as error:
            got, right = str(error), isinstance(expected, str) and re.search(expected, str(error))
        wrong += [] if right else [(about, got)]
    assert not wrong
    answers = reward_functions()["answer_reward"](["3", "x"], answer=[3, None])
    assert answers == [1, 0]  # JSON's numbers are numbers


def test_a_setting_of_a_reward_that_is_also_a_column_is_refused(tiny, rows, tmp_path):
    lines = [{**row, "max_emoji": 3} for row in rows]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    message = refused([*tiny, "--dataset.data_files", str(tmp_path / "q.jsonl"), "--check"])
    assert "rewards.emoji_reward.max_emoji: the data have a column of this name" in message


def test_the_counts_add_up_and_no_held_out_question_is_trained_on(policy, rows, tmp_path):
    lines = [*rows[:40], *rows[:10], *rows[:10], {**rows[0], "query": "長い" * 300}, {**rows[0], "query": " "}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = ["--dataset.path", tmp_path / "q.jsonl", "--prompts.drop_empty", "true", "--samples.held_out", "8"]
    kept = loaded(policy, *source)
    held_out = set(kept.held_out["query"])
    assert len(held_out) == len(kept.held_out) == 8 and not held_out & set(kept.train["query"])
    repeats = 2 * sum(row["query"] in held_out for row in rows[:10])
    assert kept.counts == {
        "read": 62,
        "to train on": 52 - repeats,
        "held out": 8,
        "empty (dropped)": 1,
        "too long (dropped)": 1,
        "the same as a held-out one (dropped)": repeats,
        "duplicates (kept)": 20 - repeats,
    }
    dropped = loaded(policy, *source, "--prompts.drop_duplicates", "true")
    assert len(dropped.train) == len(set(dropped.train["query"])) == 32
    assert dropped.counts["duplicates (dropped)"] == 20 - repeats
    assert len(loaded(policy, *source[:-1], "64").held_out) == 10  # a quarter at most
    assert f"62 read: {52 - repeats} to train on, 8 held out, 1 empty (dropped)" in kept.in_words()


def test_check_without_a_gpu_shows_the_plan_and_which_gpus_it_fits(policy, capsys):
    source = ["--dataset.path", str(ROOT / "demo/questions.jsonl")]
    model = ["--model.pretrained_model_name_or_path", policy, "--training.max_completion_length", "128"]
    train_grpo.main([*source, *model, "--check"])
    plan = capsys.readouterr().out
    assert plan.startswith("machine: no CUDA GPU here")
    assert "16 GB fits" in plan and "141 GB fits" in plan and "64 completions" in plan
    assert "no CUDA GPU found" in refused([*source, *model])


def test_readmes_example_of_own_data_works_as_written(policy, tmp_path):
    """CSV, settings and reward stand in README.md; run in a copy of the repository, on the tests' policy."""
    page = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your data")[1]
    table, settings, reward = re.findall(r"```\w*\n(.*?)```", page, re.DOTALL)[:3]
    (command,) = re.findall(r"^    (python train_grpo.py .*? --check)\s", page, re.MULTILINE)
    for name in ("train_grpo.py", "config.yaml", "harness"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / "mydata").mkdir()
    header, *lines = table.splitlines(keepends=True)
    more = [f"question {i},answer {i}\n" for i in range(40)]  # README shows the first lines of a longer file
    (tmp_path / "mydata/q.csv").write_text("".join([header, *lines, *more]), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(settings, encoding="utf-8")
    mine, main = (ROOT / "rewards.py").read_text(encoding="utf-8").split("if __name__")
    (tmp_path / "rewards.py").write_text(f"{mine}{reward}\n\nif __name__{main}", encoding="utf-8")
    words = [sys.executable, *command.split()[1:], "--model.pretrained_model_name_or_path", policy]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"{len(lines) + 40} read" in result.stdout and "1 x polite_reward" in result.stdout
    assert "answer_reward" in result.stdout and "emoji_reward" not in result.stdout


NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATE = (
    "{% for m in messages %}{% if loop.index0 % 2 != (m.role == 'assistant') | int %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
ASKED = "{% for m in messages %}{{ m.content }}{% endfor %}"
TEMPLATES = [  # the policy's template, what is laid over the demo's settings, words of the message
    (
        NO_SYSTEM + ASKED,
        ["--prompts.system", "短く"],
        "prompts.system: the template of .* refuses it .System role not supported.; re",
    ),
    (NEEDS_SYSTEM + ASKED, [], "prompts.system: the template of .* wants one .no system turn.; set it"),
    (
        ALTERNATE + ASKED,
        ["--prompts.column", "turns"],
        "prompts.column: row 3: the template of .*user, user.: roles must alternate",
    ),
    ({"a": ASKED, "b": ASKED}, [], "model.pretrained_model_name_or_path: the template of .* does not work: "),
    (NO_SYSTEM + ASKED, [], None),
]


def test_what_a_chat_template_refuses_is_named(policy, rows, tmp_path):
    turn = {"role": "user", "content": "?"}
    lines = [{**row, "turns": [turn, turn] if i == 3 else [turn]} for i, row in enumerate(rows[:20])]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer, wrong = AutoTokenizer.from_pretrained(policy), []
    for template, arguments, words in TEMPLATES:
        tokenizer.chat_template, said = template, None
        source = ["--dataset.data_files", str(tmp_path / "q.jsonl"), *arguments]
        try:
            load_data(read_settings(["--config", str(ROOT / "demo/config.yaml"), *source]), tokenizer)
        except UserError as error:
            said = str(error)
        if (said is None) != (words is None) or (words and not re.search(words, said)):
            wrong.append((arguments, said))
    assert wrong == []


def test_columns_of_every_type_reach_rewards_and_cost_neither_samples_nor_card(
    tiny, rows, tmp_path, monkeypatch, capsys
):
    """A date, a decimal, bytes, nested lists and objects, from Parquet; the plan shows them as a reward gets them."""
    others = {
        "day": datetime.date(2024, 1, 1),
        "at": datetime.datetime(2024, 1, 1, 12, tzinfo=datetime.UTC),
        "took": datetime.timedelta(seconds=3),
        "price": decimal.Decimal("3.10"),
        "image_bytes": b"\x00\xff",
        "reward_model": {"ground_truth": ["3776"], "style": "rule"},
        "missing": None,
    }
    Dataset.from_list([{**row, **others} for row in rows]).to_parquet(tmp_path / "q.parquet")
    got = {}

    def needs_all(completions, day, at, took, price, image_bytes, reward_model, missing):
        got.update({name: values[0] for name, values in locals().items() if name in others})
        return [0.0] * len(completions)

    monkeypatch.setattr(rewards, "needs_all", needs_all, raising=False)
    source = ["--dataset.data_files", str(tmp_path / "q.parquet"), "--rewards.needs_all.weight", "1"]
    train_grpo.main([*tiny, *source])
    assert got == others
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert samples[-1]["price"] == "3.10" and samples[-1]["reward_model"] == others["reward_model"]
    assert (tmp_path / "run/README.md").exists()
    plan = " ".join(capsys.readouterr().out.split())
    for words in ("day datetime.date(2024, 1, 1) (date)", "price Decimal('3.10') (Decimal)", "missing None (NoneType)"):
        assert words in plan
