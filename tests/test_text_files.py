"""CSV, TSV and JSON, as people and other programs write them: what is read is what stands there, or it is refused."""

import gzip
import json

import datasets
import pytest
from conftest import ROOT
from datasets import Dataset

from harness.before.read_rows import read_rows
from harness.errors import UserError
from harness.settings import read_settings

TAB_QUOTES = "query\tanswer\n" + "".join(f"{chr(34) * (i in (4, 9))}q{i}\t{i}\n" for i in range(40))
NUMBERS = ["--dataset.features", "{answer: int64}"]
TABLES = [  # name, content, [the rows as (query, answer)] or words of the message, more arguments
    ("q.csv", "query,answer\nq,3776\nr,\ns,0600001\nt,3.10\nu,NA\nv,None\nw,1e5\nx,TRUE\n",
     [*zip("qrstuvwx", ["3776", None, "0600001", "3.10", "NA", "None", "1e5", "TRUE"], strict=True)]),
    ("q.csv", "query,answer\n高さが3,776mの山は?,3776\nb,1\n", "q.csv:2: 3 cells, where the header has 2 (query"),
    ("q.csv", 'query,answer\n"a\nb",1\n高さが3,776m?,3776\n', "q.csv:4: 3 cells"),
    ("q.csv", "query,answer\na\n", "2: 1 cells, where the header has 2 (query, answer); an empty cell"),
    ("q.csv", "query\n3,776\n", "q.csv:2: 2 cells"),
    ("q.csv", "query,answer,\na,1,\nb,2\n", [("a", "1"), ("b", "2")]),
    ("q.csv", "query,answer,\n高さが3,776mの山は?,3776\n", "q.csv:2: 3 cells, where the header has 2"),
    ("q.csv", "query,answer\na,1,\nb,2, \n", [("a", "1"), ("b", "2")]),
    ("q.csv", "query, answer\na, 1\nb, 2\n", [("a", "1"), ("b", "2")]),
    ("q.csv", "\n\nquery,answer\n\na,1\n,\n", [("a", "1"), (None, None)]),
    ("q.csv", '\ufeffquery,answer\r\n"c ""x""",2\r\n5" disk,3\r\n', [('c "x"', "2"), ('5" disk', "3")]),
    ("q.csv", "query,answer\ra\u2028b,1\r", [("a\u2028b", "1")]),
    ("q.csv", 'query,answer\n"a,1\nb,2\n', "q.csv:2: a quote is opened here and never"),
    ("q.csv", 'query,answer\nb,2\n"a" c,1\n', "q.csv:3: ',' expected after '\"'"),
    ("q.csv", "query,answer,answer\na,1,2\n", "q.csv:1: two columns are called 'answer'"),
    ("q.csv", "query;answer\n3,776m?;1\n", "q.csv:1: its columns are not separated by commas; set dataset.delimiter"),
    ("q.csv", "query;answer\n3,776m?;1\n", [("3,776m?", "1")], "--dataset.delimiter", ";"),
    ("q.csv", "query,answer\n山,1\n".encode("cp932"), "is not UTF-8; save it as UTF-8, or set dataset.encoding"),
    ("q.csv", "query,answer\n山,1\n".encode("cp932"), [("山", "1")], "--dataset.encoding", "cp932"),
    ("q.csv", "query,answer\na,1\n".encode("utf-16-le"), "q.csv:1: is not UTF-8"),
    ("q.csv.gz", gzip.compress(b"query,answer\na,01\n"), [("a", "01")]),
    ("実験 [1]/q.csv", "query,answer\na,1\n", [("a", "1")]),
    ("q.csv", "query,answer\na,1\nb,\n", [("a", 1), ("b", None)], *NUMBERS),
    ("q.csv", "query,answer\na,x\n", "dataset.features.answer: row 0 holds 'x', which is no int64", *NUMBERS),
    ("q.csv", "query,answer\na,x\nb,1\n", [("a", None), ("b", 1.0)], "--dataset.na_values", "[x]"),
    ("q.csv", "query,answer\na,1\nb,2\n", [("a", "1")], "--dataset.split", "train[:50%]"),
    ("q.csv", "query,answer\na,1\n", "dataset.split: ", "--dataset.split", "train[:200%]"),
    ("q.csv", "query,answer\na,1\n", "dataset.split: the split train[5:2]", "--dataset.split", "train[5:2]"),
    ("q.csv", "query,answer\n", "the data have no rows"),
    ("q.tsv", TAB_QUOTES, [(f"{chr(34) * (i in (4, 9))}q{i}", str(i)) for i in range(40)]),
    ("q.tsv", "query\tanswer\na\tb\tc\n", "q.tsv:2: 3 cells"),
    ("q.jsonl", '{"query": "いつ?", "answer": "2024-01-01"}\n', [("いつ?", "2024-01-01")]),
    ("q.jsonl", '\n{"query": "a", "answer": 3}\r\n{"query": "b"}\n', [("a", 3), ("b", None)]),
    ("q.jsonl", '{"query": "a\\u2028b", "answer": "12:30"}\n{"query": "b", "answer": "1e5"}',
     [("a\u2028b", "12:30"), ("b", "1e5")]),
    ("q.json", '[{"query": "q", "answer": 1},\n {"query": "r", "answer": 1.5}]', [("q", 1), ("r", 1.5)]),
    ("q.jsonl", '{"query": "q", "answer": {"a": null}}\n{"query": "r", "answer": {"b": [1, "1", 0.1]}}\n',
     [("q", {"a": None}), ("r", {"b": [1, "1", 0.1]})]),
    ("q.json", '[{"query": "q", "answer": 1}, {"query": "r", "answer": "1"}]', "answer is a number (row 0) and a"),
    ("q.json", '[{"query": "q", "answer": 123456789012345678901}]', "row 0: answer: 12345678901234567890"),
    ("q.json", '[{"query": "q", "answer": [123456789012345678901, 0.3333333333333333]}]',
     [("q", [123456789012345678901, 0.3333333333333333])]),
    ("q.json", '[{"query": "q", "answer": 1}, {"query": "r", "answer": 0.1234567890123456}]',
     [("q", 1), ("r", 0.1234567890123456)]),
    ("q.jsonl", '{"query": "q", "answer": 1e400}\n', "q.jsonl:1: 1e400 is no number"),
    ("q.jsonl", '{"query": "q", "answer": "\\ud800"}\n', "row 0: answer holds half of a character"),
    ("q.jsonl", '{"query": "q", "answer": "a"}\n{"query": "r", "Answer": "b"}\n', "has the columns 'answer' and"),
    ("q.csv", 'query, answer\nq, "a, b"\n', [("q", "a, b")]),
    ("q.csv", b"query,answer\na,1\nb,2\n\xff,3\n", "q.csv:4: is not UTF-8"),
    ("q.csv", "query,answer\na,1\n".encode("utf-16"), "set dataset.encoding: utf-16"),
    ("q.csv", "query,answer\na,1\n".encode("utf-16"), [("a", "1")], "--dataset.encoding", "utf-16"),
    ("q.csv", "\ufeffquery,answer\na,1\n".encode("utf-16-le"), [("a", "1")], "--dataset.encoding", "utf-16-le"),
    ("q.csv", "query,answer\na,1\n", "int is no type for it", "--dataset.features", "{answer: int}"),
    ("q.csv", b"PAR1\xff", "q.csv is Parquet; name it .parquet"),
    ("q.jsonl", "".join(f'{{"query": "q", "answer": "a"}}{"," * (i == 9)}\n' for i in range(12)), "q.jsonl:10: a "),
    ("q.jsonl", '{"query": "q", "answer": "a"},\n' * 3, "q.jsonl:1: a comma ends the line"),
    ("q.jsonl", "{'query': 'q'}\n", "q.jsonl:1: not JSON: "),
    ("q.jsonl", '{"query": "q", "answer": NaN}\n', "q.jsonl:1: NaN is no number"),
    ("q.jsonl", '{"query": "q", "query": "r"}\n', "q.jsonl:1: the key 'query' is there twice"),
    ("q.json", '{\n"data": [\n{"query": "q"},\n]\n}', "q.json:4: not JSON"),
    ("q.json", "[1, 2]", "q.json: row 0: is a number, not an object"),
    ("q.json", '{"data": [{"query": "q", "answer": "a"}]}', [("q", "a")], "--dataset.field", "data"),
    ("q.json", '{"data": [{"query": "q"}]}', "there is no field 'rows'; it has data", "--dataset.field", "rows"),
    ("q.jsonl", "\n\n", "the data have no rows"),
    ("q.gguf", b"GGUF", "is GGUF, a format for inference; name the safetensors model"),
]  # fmt: skip


def test_what_stands_in_a_file_is_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    wrong = []
    for i, (name, content, expected, *arguments) in enumerate(TABLES):
        file = tmp_path / str(i) / name
        file.parent.mkdir(parents=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        for _ in range(2):  # the second time out of the cache
            try:
                rows = read(file, *arguments)
                got = [(row["query"], row.get("answer")) for row in rows]
                right = got == expected and [*map(repr, got)] == [*map(repr, expected)]
            except UserError as error:
                got = str(error)
                right = isinstance(expected, str) and expected in got
            wrong += [] if right else [(name, content[:60], got)]
    assert not wrong, "\n".join(map(str, wrong))


def read(path, *arguments) -> Dataset:
    return read_rows(
        read_settings(["--config", str(ROOT / "demo/config.yaml"), "--dataset.path", str(path), *arguments])
    )


def test_several_files_agree_in_their_columns_and_a_saved_data_set_is_loaded(tmp_path):
    for name, content in {"a.csv": "query,answer\na,1\n", "b.csv": "query\nb\n"}.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"b.csv: the column answer is not there, in .*a.csv it is text; make them"):
        read(f"{tmp_path}/*.csv")
    rows = [{"query": "a", "answer": "01"}, {"query": "b", "answer": None}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": Dataset.from_list(rows[:1])}).save_to_disk(tmp_path / "dict")
    assert read(tmp_path / "saved").to_list() == rows
    assert read(tmp_path / "dict", "--dataset.split", "train").to_list() == rows[:1]
    folder = tmp_path / "実験 [1]"
    folder.mkdir()
    (folder / "q.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(UserError, match="datasets takes .* in a folder's name for a pattern"):
        read(folder)


def test_a_folder_is_read_whole_and_files_of_unlike_columns_are_refused(tmp_path, monkeypatch):
    rows = [{"query": "a", "answer": "007"}]
    folders = {
        "unlike": ({"a.parquet": rows, "b.parquet": [{"query": "b", "answer": 5}]}, "the column answer is int64, in "),
        "left out": ({"data.csv": "query\na\n", "test_q.csv": "query\nb\n"}, "datasets would not read 1 (data.csv)"),
        "two formats": ({"a.csv": "query\na\n", "c.jsonl": '{"query": "b"}'}, "datasets would not read 1 ("),
        "two splits": ({"train.csv": "query\na\n", "test.csv": "query\nb\n"}, "none given; choose one of train, test"),
        "tabs": ({"a.tsv": 'query\tanswer\n"a\t1\n'}, [{"query": '"a', "answer": "1"}]),
        "lines": ({"a.txt": "\ufeffa\nb\n"}, [{"text": "a"}, {"text": "b"}]),
    }
    wrong = []
    for name, (files, expected) in folders.items():
        (tmp_path / name).mkdir()
        for file, content in files.items():
            if isinstance(content, str):
                (tmp_path / name / file).write_text(content)
            else:
                Dataset.from_list(content).to_parquet(tmp_path / name / file)
        try:
            got = read(tmp_path / name).to_list()
        except UserError as error:
            got = str(error)
        if got != expected and not (isinstance(expected, str) and expected in got):
            wrong.append((name, got))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines/.hidden.txt").write_text("c")
    assert len(read("lines")) == len(read("lines/")) == 2
    saved = tmp_path / "saved"
    Dataset.from_list(rows * 4).save_to_disk(saved)
    assert len(read(saved, "--dataset.split", "train[:2]")) == 2
    with pytest.raises(UserError, match="dataset.split: the split nonsense is not there"):
        read(saved, "--dataset.split", "nonsense")
    with pytest.raises(UserError, match="there is no folder or file .*nothere"):
        read(f"{tmp_path}/nothere*.csv")
    assert wrong == []


def test_a_cache_that_cannot_be_written_is_not_the_files_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/nothing")
    (tmp_path / "q.csv").write_text("query,answer\na,1\n")
    with pytest.raises(UserError, match="the cache /proc/nothing.* cannot be written .*; set HF_HOME"):
        read(tmp_path / "q.csv")
