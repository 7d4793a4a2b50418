"""CSV, TSV and JSON, as people and other programs write them: what is read is what stands there, or it is refused."""

import gzip
import json
import pickle
import re

import datasets
import pytest
from conftest import ROOT
from datasets import Dataset

from harness.before.read_rows import read_rows
from harness.errors import UserError
from harness.settings import read_settings

NUMBERS = ["--dataset.features", "{answer: int64}"]
TABLES = [  # name, content, [the rows as (query, answer)] or key or place and a word of the message, more arguments
    ("q.csv", "query,answer\nq,3776\nr,\ns,0600001\nt,3.10\nu,NA\nv,None\nw,1e5\nx,TRUE\n",
     [*zip("qrstuvwx", ["3776", None, "0600001", "3.10", "NA", "None", "1e5", "TRUE"], strict=True)]),
    ("q.csv", "query,answer\n高さが3,776mの山は?,3776\nb,1\n", "q.csv:2: 3 cells"),
    ("q.csv", 'query,answer\n"a\nb",1\n高さが3,776m?,3776\n', "q.csv:4: 3 cells"),
    ("q.csv", "query,answer,\na,1,\nb,2\n", [("a", "1"), ("b", "2")]),
    ("q.csv", "query,answer,\n高さが3,776mの山は?,3776\n", "q.csv:2: 3 cells"),
    ("q.csv", "\n\nquery,answer\n\na,1\n,\n", [("a", "1"), (None, None)]),
    ("q.csv", '\ufeffquery,answer\r\n"c ""x""",2\r\n5" disk,3\r\n', [('c "x"', "2"), ('5" disk', "3")]),
    ("q.csv", "query,answer\ra\u2028b,1\r", [("a\u2028b", "1")]),
    ("q.csv", 'query,answer\n"a,1\nb,2\n', "q.csv:2: unexpected end"),
    ("q.csv", "query,answer,answer\na,1,2\n", "q.csv:1: .* 'answer'"),
    ("q.csv", "query;answer\n3,776m?;1\n", "q.csv:1: .* dataset.delimiter"),
    ("q.csv", "query,answer\n山,1\n".encode("cp932"), "q.csv:2: is not UTF-8.* dataset.encoding"),
    ("q.CSV", "query,answer\na,01\n", [("a", "01")]),
    ("実験 [1]/q.csv", "query,answer\na,1\n", [("a", "1")]),
    ("q.csv", "query,answer\na,1\nb,\n", [("a", 1), ("b", None)], *NUMBERS),
    ("q.csv", "query,answer\na,1\nb,x\nc,y\n", "dataset.features.answer: row 1: .*'x'", *NUMBERS),
    ("q.csv", "query,answer\na,x\nb,1\n", [("a", None), ("b", 1.0)], "--dataset.na_values", "[x]"),
    ("q.tsv", 'query\tanswer\n"a\nb"\t"1"\n', "q.tsv:2: 1 cell.* dataset.quoting: 0"),
    ("q.tsv", 'query\tanswer\n"a\nb"\t"01"\n', [("a\nb", "01")], "--dataset.quoting", "0"),
    ("q.csv", "query,answer\na,1\nb,2\n", [("a", "1")], "--dataset.split", "train[:50%]"),
    ("q.csv", "query,answer\na,1\n", "dataset.split: .*5:2", "--dataset.split", "train[5:2]"),
    ("q.jsonl", '{"query": "a\\u2028b", "answer": "12:30"}\n{"query": "b"}', [("a\u2028b", "12:30"), ("b", None)]),
    ("q.jsonl", '{"query": "q", "answer": {"a": null}}\n{"query": "r", "answer": {"b": [1, "1", 0.1]}}\n',
     [("q", {"a": None}), ("r", {"b": [1, "1", 0.1]})]),
    ("q.json", '[{"query": "q", "answer": 1}, {"query": "r", "answer": "1"}]', "answer is int .row 0., str .row 1."),
    ("q.json", '[{"query": "q", "answer": 1}, {"query": "r", "answer": 0.1234567890123456}]',
     [("q", 1), ("r", 0.1234567890123456)]),
    ("q.jsonl", '{"query": "q", "answer": "\\ud800"}\n', "q.jsonl: .*ud800"),
    ("q.jsonl", '{"query": "q", "answer": "a"}\n{"query": "r", "Answer": "b"}\n', "q.jsonl: .*'answer', 'Answer'"),
    ("q.csv", 'query, answer\nq, "a, b"\n', [("q", "a, b")]),
    ("q.csv", "query,answer\na,1\n".encode("utf-16"), [("a", "1")], "--dataset.encoding", "utf-16"),
    ("q.csv", "query,answer\na,1\n", "dataset.features.answer: .* int ", "--dataset.features", "{answer: int}"),
    ("q.jsonl", "".join(f'{{"query": "q", "answer": "a"}}{"," * (i == 9)}\n' for i in range(12)), "q.jsonl:10: "),
    ("q.jsonl", '{"query": "q", "answer": NaN}\n', "q.jsonl:1: NaN is no number"),
    ("q.jsonl", '{"query": "q", "query": "r"}\n', "q.jsonl:1: .*twice: .*query"),
    ("q.json", '{\n"data": [\n{"query": "q"},\n]\n}', "q.json:4: not JSON"),
    ("q.json", "[1, 2]", "q.json: row 0: int, not an object"),
    ("q.json", '{"data": [{"query": "q"}]}', "q.json: .* field 'rows'; it has .'data'", "--dataset.field", "rows"),
    ("q.jsonl", "\n\n", "the data have no rows"),
    ("q.gguf", b"GGUF", "q.gguf: is of no known format"),
    ("q.jsonl.gz", gzip.compress(b'{"query": "q"}')[:-9], "q.jsonl.gz: .*ended before"),
]  # fmt: skip


def read(path, *arguments) -> Dataset:
    settings = ["--config", str(ROOT / "demo/config.yaml"), "--dataset.path", str(path), *arguments]
    return read_rows(read_settings(settings))


def test_what_stands_in_a_file_is_what_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    wrong = []
    for i, (name, content, expected, *arguments) in enumerate(TABLES):
        file = tmp_path / str(i) / name
        file.parent.mkdir(parents=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        for _ in range(2):  # the second time out of the cache
            try:
                got = [(row["query"], row.get("answer")) for row in read(file, *arguments)]
                right = got == expected and [*map(repr, got)] == [*map(repr, expected)]
            except UserError as error:
                got = str(error)
                right = isinstance(expected, str) and re.search(expected, got) and "\n" not in got
            wrong += [] if right else [(name, content[:60], got)]
    assert not wrong, "\n".join(map(str, wrong))
    said = capsys.readouterr().out
    assert said.count("the spaces") == 1 and said.count("note: dataset.na_values") == 2  # once a file, once a call


def test_json_is_exact_and_datasets_reads_other_json_as_ever(tmp_path):
    """Nothing of datasets is patched; and what is streamed, mapped and handed to workers stays exact."""
    answers = [12345678901234567890123, 1 / 3, {"a": [None, "1", 1]}]
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps({"query": "q", "answer": answer}) + "\n" for answer in answers))
    for arguments in ([], ["--dataset.streaming", "true", "--prompts.limit", "3"]):
        rows = read(file, *arguments)
        assert rows["answer"][:] == pickle.loads(pickle.dumps(rows))["answer"][:] == answers
        assert rows.map(lambda row: {"n": 1}).select([1, 0])["answer"][:] == [answers[1], answers[0]]
    assert datasets.Json().decode_example("123456789012345678901") != 123456789012345678901  # upstream's, as it is
    for text in ("a", "b"):  # which is not taken from where datasets unpacks files to
        (tmp_path / "q.txt.gz").write_bytes(gzip.compress(text.encode()))
        assert read(tmp_path / "q.txt.gz").to_list() == [{"text": text}]
    file.write_text('{"query": "q", "answer": "2024-01-01"}\n')
    datasets.load_dataset("json", data_files=str(file))  # whose guess, a time, is not taken from its cache
    assert read(file)["answer"][:] == ["2024-01-01"]


LINE = '{"query": "b"}'
ROWS = [{"query": "a", "answer": "007"}]
FOLDERS = [  # files, the rows or words of the message
    ({"a.parquet": ROWS, "b.parquet": [{"query": "b", "answer": 5}]}, "b.parquet .*other columns or types.*int64"),
    ({"data.csv": "query\na\n", "test_q.csv": "query\nb\n"}, "data.csv would be left out"),
    ({"train.csv": "query\na\n", "test.csv": "query\nb\n"}, "dataset.split: .*choose one of train, test"),
    ({"a.tsv": 'query\tanswer\n"a\t1\n'}, [{"query": '"a', "answer": "1"}]),
    ({"a.txt": "\ufeffa\nb\n", ".hidden.txt": "c"}, [{"text": "a"}, {"text": "b"}]),
    ({"[1]/q.jsonl": LINE}, "dataset.path: .*pattern"),
]


def test_a_folder_is_read_whole_or_refused(tmp_path):
    wrong = []
    for i, (files, expected) in enumerate(FOLDERS):
        for name, content in files.items():
            file = tmp_path / str(i) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                file.write_text(content)
            else:
                Dataset.from_list(content).to_parquet(file)
        try:
            got = read(file.parent).to_list()
        except UserError as error:
            got = str(error)
        if got != expected and not (isinstance(expected, str) and re.search(expected, got)):
            wrong.append((files, got))
    assert wrong == []


def test_a_saved_data_set_is_loaded_and_what_is_not_there_is_named(tmp_path, monkeypatch):
    rows = [*ROWS, {"query": "b", "answer": None}]
    saved = Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "saved [1]", num_shards=2)
    saved.save_to_disk(tmp_path / "saved")
    datasets.load_from_disk(tmp_path / "saved").map(lambda row: {"n": 1})  # leaves a file of a cache there
    datasets.DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "dict")
    assert read(tmp_path / "saved").to_list() == read(tmp_path / "saved [1]").to_list() == rows
    assert read(tmp_path / "saved", "--dataset.split", "train[:1]").to_list() == ROWS
    assert read(tmp_path / "dict", "--dataset.split", "train").to_list() == ROWS
    assert read(tmp_path / "saved", "--dataset.split", "train[:50%]+train").to_list() == [*ROWS, *rows]
    (tmp_path / "saved [1]/data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match="dataset.path: .*data-00001-of-00002.arrow"):
        read(tmp_path / "saved [1]")
    with pytest.raises(UserError, match="dataset.split: .*nonsense"):
        read(tmp_path / "saved", "--dataset.split", "nonsense")
    for name in (f"{tmp_path}/nothere*.csv", f"{tmp_path}/nothere.csv", f"{tmp_path}/nothere", "owner/nothere"):
        with pytest.raises(UserError, match="dataset.path: .*nothere"):
            read(name)
    (tmp_path / "one.csv").write_text("query\none\n")
    (tmp_path / "two.csv").write_text("query\ntwo\n")
    for several in (f"[{tmp_path}/one.csv, {tmp_path}/two.csv]", f"{tmp_path}/*.csv"):
        rows = read(ROOT / "demo/questions.jsonl", "--dataset.data_files", several, "--dataset.path", "csv")
        assert rows["query"][:] == ["one", "two"]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/nothing")
    (tmp_path / "q.csv").write_text("query,answer\na,1\n")
    with pytest.raises(UserError, match="q.csv: .*/proc/nothing"):  # the cache is at fault, not the file
        read(tmp_path / "q.csv")
