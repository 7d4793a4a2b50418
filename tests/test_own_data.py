"""A user's own data, through the real command line: each shape of docs/data.md, README's example, names, counts."""

import datetime
import decimal
import json
import re
import shutil
import subprocess
import sys

import yaml
from conftest import REWARDS, ROOT, refused
from datasets import Dataset
from PIL import Image
from transformers import AutoTokenizer

import rewards
import train_grpo
from harness.before.data import load_data
from harness.settings import read_settings


def loaded(policy, *arguments):
    settings = read_settings(["--config", str(ROOT / "demo/config.yaml"), *map(str, arguments)])
    return load_data(settings, AutoTokenizer.from_pretrained(policy))


Q, A = "日本で一番高い山は?", "富士山"
CHAT = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]


def test_other_data_in_a_file_of_settings_leave_nothing_of_the_articles(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"dataset: {{path: {tmp_path}/q.csv}}\n")
    csv = {"split": "train", "index_col": False, "path": "csv", "data_files": f"{tmp_path}/q.csv"}
    assert read_settings(["--config", str(tmp_path / "mine.yaml")]).dataset == csv
    assert read_settings(["--dataset.streaming", "true"]).dataset["path"] == "cl-nagoya/auto-wiki-qa"


def test_columns_find_the_rewards_under_other_names(tiny, rows, tmp_path, capsys):
    lines = [{"query": row["query"], "expected": row["answer"]} for row in rows]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [*tiny, "--dataset.data_files", str(tmp_path / "q.jsonl"), "--check"]
    assert "needs the column answer, but the data have query, expected; rename one" in refused(arguments)
    train_grpo.main([*arguments, "--prompts.rename", "{expected: answer}"])
    assert "4 x answer_reward" in capsys.readouterr().out
    train_grpo.main([*arguments, "--rewards.answer_reward.weight", "0"])
    plan = capsys.readouterr().out
    assert "note: answer_reward, of weight 0, is left out" in plan and "x answer_reward" not in plan
    for rename in ("{wanted: a}", "{expected: query}", "{expected: a, query: a}"):
        assert "prompts.rename." in refused([*arguments, "--prompts.rename", rename])
    assert "'anser'" in (message := refused([*arguments, "--prompts.column", "anser"])) and "query, expected" in message
    lines = [{**line, "answer": "a", "max_emoji": 3} for line in lines]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    message = refused(arguments)
    assert "rewards.emoji_reward: " in message and "max_emoji" in message  # a setting that is also a column
    joined = ["--prompts.column", "[query, n]", "--rewards.answer_reward.weight", "0"]
    (tmp_path / "q.jsonl").write_text('{"query": "q", "n": "m"}\n{"query": "q", "n": null}\n' * 8)
    train_grpo.main([*arguments, *joined])
    (tmp_path / "q.jsonl").write_text('{"query": "q", "n": 1}\n' * 8)
    assert "prompts.column: only texts are joined, not row 0" in refused([*arguments, *joined])


def test_the_counts_add_up_and_no_held_out_question_is_trained_on(policy, rows, tmp_path):
    lines = [*rows[:40], *rows[:10], *rows[:10], {**rows[0], "query": "長い" * 300}, {**rows[0], "query": " "}]
    lines.append({**rows[0], "query": None})
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = ["--dataset.path", tmp_path / "q.jsonl", "--prompts.drop_empty", "true", "--samples.held_out", "8"]
    kept = loaded(policy, *source)
    held_out = set(kept.held_out["query"])
    assert len(held_out) == len(kept.held_out) == 8 and not held_out & set(kept.train["query"])
    repeats = 2 * sum(row["query"] in held_out for row in rows[:10])
    known = f"{repeats} the same as a held-out one (dropped), {20 - repeats} duplicate (kept)"
    dropped = f"2 empty (dropped), 1 too long (dropped), {known}"
    assert kept.in_words() == f"63 read: {52 - repeats} to train on, 8 held out, {dropped}"
    # What earlier versions held out and trained on, so that their runs can be resumed.
    assert loaded(policy, *source, "--training.seed=7").held_out["query"][:] == kept.held_out["query"][:]
    assert kept.held_out["query"][:] == [rows[i]["query"] for i in (7, 1, 17, 15, 14, 8, 6, 5)]
    assert kept.sha256() == "979c70bf6a2228714fcfb8b5c960e1bfb086c6f6bd779d8b44a48a1e244f8e65"
    dropped = loaded(policy, *source, "--prompts.drop_duplicates", "true")
    assert len(dropped.train) == len(set(dropped.train["query"])) == 32
    assert dropped.counts["duplicate (dropped)"] == 20 - repeats
    assert len(loaded(policy, *source[:-1], "64").held_out) == 10  # a quarter at most


def test_readmes_example_works_as_written(policy, tmp_path):
    page = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your reward")[1]
    reward, settings = re.findall(r"```\w*\n(.*?)```", page, re.DOTALL)[:2]
    (command,) = re.findall(r"^    (python train_grpo.py .*? --check)\s", page, re.MULTILINE)
    for name in ("train_grpo.py", "config.yaml", "harness", "demo"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / "mine.yaml").write_text(settings, encoding="utf-8")
    (tmp_path / "rewards.py").write_text(REWARDS.read_text(encoding="utf-8") + reward, encoding="utf-8")
    words = [sys.executable, *command.split()[1:], "--model.pretrained_model_name_or_path", policy]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "291 read" in result.stdout and "0.5 x polite_reward (bonus 2)" in result.stdout
    assert "answer_reward" in result.stdout and "emoji_reward" not in result.stdout


def test_conversations_and_columns_of_any_type_reach_rewards_and_samples(tiny, rows, tmp_path, monkeypatch, capsys):
    """Names that TRL passes to rewards too, or by which it trains otherwise, or that our settings have; a date, a
    decimal, bytes, nested lists and objects, from Parquet, which the plan shows as a reward gets them; no answer."""
    at = datetime.datetime(2024, 1, 1, 12, tzinfo=datetime.UTC)
    others = {"day": at.date(), "at": at, "took": datetime.timedelta(seconds=3), "price": decimal.Decimal("3.10")}
    others |= {"image_bytes": b"\x00\xff", "reward_model": {"ground_truth": ["3776"], "style": "rule"}, "missing": None}
    lines = []
    for i, row in enumerate(rows):
        line = {"prompts": [{**CHAT[0], "content": row["query"]}, CHAT[1]], "weight": 1, "tools": [1], "messages": CHAT}
        lines.append(line | {"answer": (row["answer"], None, "")[i % 3]} | others)
    Dataset.from_list(lines).to_parquet(tmp_path / "q.parquet")
    got = {}

    def needs_all(completions, day, at, took, price, image_bytes, reward_model, missing):
        got.update({name: values[0] for name, values in locals().items() if name in others})
        return [0.0] * len(completions)

    monkeypatch.setattr(rewards, "needs_all", needs_all, raising=False)
    source = ["--dataset.data_files", str(tmp_path / "q.parquet"), "--prompts.column", "prompts"]
    train_grpo.main([*tiny, *source, "--rewards.needs_all.weight", "1"])
    assert got == others
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert samples[-1]["price"] == "3.10" and samples[-1]["reward_model"] == others["reward_model"]
    plan = " ".join(capsys.readouterr().out.split())
    missing = "warning: missing, which needs_all asks for, is empty in 227 rows"
    for words in ("day datetime.date(2024, 1, 1) (date)", "price Decimal('3.10') (Decimal)", missing):
        assert words in plan
    assert "note: the column tools is left out" in plan


SHARE = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]
VERL = {"data_source": "mine", "prompt": CHAT[:1], "reward_model": {"ground_truth": A, "style": "rule"}}
FILES = {  # how a row of the table begins: (content of the file, the first question, the first row's other columns)
    "CSV with": (f"query,answer\n{Q},0600001\n", Q, {"answer": "0600001"}),
    "... of semicolons": (f"query;answer\n{Q};1,5\n", Q, {"answer": "1,5"}),
    "TSV": (f'query\tanswer\n"{Q}\t3.10\n', f'"{Q}', {"answer": "3.10"}),
    "JSON Lines": (json.dumps({"query": Q, "answer": "2024-01-01"}), Q, {"answer": "2024-01-01"}),
    "JSON with": (json.dumps({"version": 1, "data": [{"query": Q, "answer": 3}]}), Q, {"answer": 3}),
    "Parquet": (VERL, Q, {"reward_model": VERL["reward_model"]}),
    "text": (f"{Q}\n富士山?\n", Q, {}),
    "a folder": ({"query": Q, "answer": A}, Q, {"answer": A}),
    "OpenAI": (json.dumps({"messages": CHAT, "answer": A}), Q, {"answer": A}),
    "ShareGPT": (json.dumps({"conversations": SHARE, "answer": A}), Q, {"answer": A}),
    "`prompt` and": (json.dumps({"prompt": Q, "completion": A}), Q, {"answer": A}),
    "`instruction`": (json.dumps({"instruction": "答えて", "input": Q, "output": A}), f"答えて\n\n{Q}", {"answer": A}),
}  # fmt: skip


def test_every_row_of_docs_data_works_as_written(policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page, wrong = (ROOT / "docs/data.md").read_text(encoding="utf-8"), []
    table = [row.split(" | ") for row in page.splitlines() if row.startswith("| ")][1:]
    for shape, write, _ in table:
        begin = next((begin for begin in FILES if shape[2:].startswith(begin)), None)
        if begin is None:
            wrong += [] if "Hub" in shape else [shape]
            continue
        content, question, columns = FILES[begin]
        settings = {}
        for part in re.findall(r"`(\w+: .*?)`", write)[: 1 if "semicolons" in shape else None]:
            settings |= yaml.safe_load(part)
        path = (settings.setdefault("dataset", {"path": "q.jsonl"}))["path"]
        if isinstance(content, str):
            (tmp_path / path).write_text(content, encoding="utf-8")
        elif path == "folder":
            Dataset.from_list([content]).save_to_disk(path)
        else:
            Dataset.from_list([content]).to_parquet(path)
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings | {"samples": {"held_out": 0}}))
        row = loaded(policy, "--config", "mine.yaml").train[0]
        if row != row | columns | {"prompt": [{"role": "user", "content": question}]}:
            wrong.append((shape, row))
    assert not wrong, wrong


def test_pictures_are_digested_as_they_are_stored_and_said_not_to_be_trained_on(policy, tmp_path, capsys):
    def digest(last: int) -> str:
        pictures = [Image.new("RGB", (2, 2), (i, 0, 0)) for i in [*range(19), last]]
        columns = {"query": [str(i) for i in range(20)], "image": pictures, "tools": ["x"] * 20}
        columns["photos"] = [[picture] for picture in pictures]
        Dataset.from_dict(columns).to_parquet(tmp_path / f"{last}.parquet")
        return loaded(policy, "--dataset.path", tmp_path / f"{last}.parquet", "--samples.held_out", "0").sha256()

    assert digest(19) == digest(19) != digest(20)
    out = capsys.readouterr().out
    said = [name for name in ("image", "photos", "tools", "query") if f"{name} is not trained on" in out]
    assert said == ["image", "photos", "tools"]
