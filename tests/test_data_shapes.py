"""docs/data.md: each shape of data in its table, with what it says to write, becomes what it says."""

import json
import re

import yaml
from conftest import ROOT
from datasets import Dataset
from transformers import AutoTokenizer

from harness.before.data import load_data
from harness.settings import read_settings

Q, A = "日本で一番高い山は?", "富士山"
CHAT = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
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


def test_every_row_of_the_page_works_as_written(policy, tmp_path, monkeypatch):
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
        settings = read_settings(["--config", str(ROOT / "demo/config.yaml"), "--config", "mine.yaml"])
        row = load_data(settings, AutoTokenizer.from_pretrained(policy)).train[0]
        as_said = row["prompt"] == [{"role": "user", "content": question}]
        if not as_said or {key: row.get(key) for key in columns} != columns:
            wrong.append((shape, row))
    assert not wrong, wrong
