"""Read rows: the data set as it stands in its files. Text stays text, and no row is lost or changed without a word.

datasets' own readers guess: "2024-01-01" becomes a time, 0600001 a number, NA nothing, and one cell too many in a line
costs the first. So CSV, TSV and JSON are read by text_files.py, unless a setting is of datasets' reader (dtype, ...).
"""

import glob
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from datasets import (
    Dataset,
    DownloadManager,
    Features,
    IterableDataset,
    Json,
    Value,
    concatenate_datasets,
    config,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.arrow_reader import ReadInstruction
from datasets.arrow_writer import ArrowWriter
from datasets.builder import BuilderConfig
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.json.json import JsonConfig

from harness.before.policy import loading_problem
from harness.before.text_files import UNNAMED, WORDS, Misfit, csv_rows, json_rows
from harness.errors import one_line
from harness.settings import Settings

READ_HERE = {"csv": CsvConfig, "json": JsonConfig}
OUR_OPTIONS = {"sep", "delimiter", "encoding", "field", "index_col", "features"} | {
    field.name for field in fields(BuilderConfig)
}
LOAD_DATASETS = {"split", "streaming", "keep_in_memory", "save_infos", "num_proc", "verification_mode"}  # keywords
AT_A_TIME = 10_000  # rows
VERSION = 1  # of what is kept on the disk: to be raised where a file is read otherwise than before


def read_rows(settings: Settings) -> Dataset:
    """The rows that the section `dataset` names, the first `prompts.limit` of them; raises UserError."""
    source, limit = settings.dataset, settings.prompts.limit
    if source.get("streaming") and limit is None:
        raise settings.error("prompts.limit", "streaming has to know where to stop; give a number of rows")
    given = "data_files" if source.get("data_files") and "dataset.data_files" in settings.places else "path"
    try:
        rows = _from_disk(source) or _read_here(source, limit) or load_dataset(**source)
        if isinstance(rows, IterableDataset):
            rows = Dataset.from_list(list(rows.take(limit)), features=rows.features)
        if isinstance(rows, Dataset) and len(rows):
            rows[0]  # a file in another encoding is not noticed before it is read
    except Misfit as error:
        raise settings.error(f"dataset.{given}", str(error)) from error
    except Exception as error:  # datasets, huggingface_hub, pyarrow and pandas each raise kinds of their own
        if "corresponds to no data" in str(error):
            raise settings.error("dataset", "the data have no rows; choose another file or split") from error
        if "split" in str(error) or "slice" in str(error):  # Unknown split "trian". Should be one of ['train'].
            hint = "streaming takes no slices, use prompts.limit" if source.get("streaming") else "fix it"
            raise settings.error("dataset.split", f"{error}; {hint}") from error
        name = str(source.get("data_files") or source.get("path"))
        raise settings.error(f"dataset.{given}", loading_problem(name, error)) from error
    if isinstance(rows, dict):
        if len(rows) > 1:
            raise settings.error("dataset.split", f"none given; choose one of {', '.join(rows)}")
        (rows,) = rows.values()
    if not len(rows):
        raise settings.error("dataset.path", "the data have no rows; choose another file or split")
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def _from_disk(source: dict[str, Any]) -> Dataset | dict[str, Dataset] | None:
    """What save_to_disk() has left in a folder, if `path` is one."""
    folder = Path(str(source.get("path")))
    if not ((folder / "state.json").exists() or (folder / "dataset_dict.json").exists()):
        return None
    rows = load_from_disk(str(folder))
    rows = dict(rows) if isinstance(rows, dict) else rows
    # config.yaml's own split means nothing to a folder with one set of rows.
    return _split(rows, source.get("split")) if isinstance(rows, dict) else rows


def _read_here(source: dict[str, Any], limit: int | None) -> Dataset | dict[str, Dataset] | None:
    """The rows of CSV, TSV and JSON files; None where it is datasets that has to read."""
    files, kind = _files(source), source.get("path")
    if files is None:
        keywords = {key: value for key, value in source.items() if key not in LOAD_DATASETS | {"features"}}
        builder = load_dataset_builder(**keywords)
        files, kind = builder.config.data_files, builder.name
        if kind not in READ_HERE or builder.info.features or not files:  # a card of the Hub may say the types
            return None
        loader = DownloadManager(dataset_name=builder.dataset_name, data_dir=source.get("data_dir"))
        files = {
            split: [*zip(map(str, of), loader.download_and_extract([*of]), strict=True)] for split, of in files.items()
        }
    its_own = {field.name for field in fields(READ_HERE[kind])} - OUR_OPTIONS
    if guessed := sorted(its_own & set(source) | ({"index_col"} if source.get("index_col") else set())):
        print(f"note: dataset.{guessed[0]} is an option of datasets' reader, which also guesses the columns' types")
        return None
    most = limit if source.get("streaming") else None
    return _split({split: _joined(kind, of, source, most) for split, of in files.items()}, source.get("split"))


def _joined(kind: str, files: list[tuple[str, str]], source: dict[str, Any], most: int | None) -> Dataset:
    """The rows of several files one after another, with the types that `features` asks for: {answer: int64}."""
    parts = [_kept(kind, *file, source, most) for file in files]
    for (name, _), part in zip(files, parts, strict=True):
        for column in sorted({*part.features, *parts[0].features}):
            here, first = (_named(each.features.get(column)) for each in (part, parts[0]))
            if here != first:
                raise Misfit(f"{name}: the column {column} is {here}, in {files[0][0]} it is {first}; make them alike")
    rows = concatenate_datasets(parts)
    for column, feature in (source.get("features") or {}).items():
        if column not in rows.features:
            raise Misfit(f"dataset.features: there is no column {column!r}; the data have {', '.join(rows.features)}")
        try:
            rows = rows.cast_column(column, Value(feature) if isinstance(feature, str) else feature)
        except Exception as error:  # pyarrow's, of many kinds: a type that is none, a text that is no number
            raise Misfit(f"dataset.features.{column}: {one_line(error)}; fix the cell, or leave it a text") from error
    return rows


def _named(feature: Any) -> str:
    kind = getattr(feature, "dtype", "objects or lists")
    return "not there" if feature is None else {"string": "text"}.get(kind, kind)


def _split(rows: dict[str, Dataset], split: Any) -> Dataset | dict[str, Dataset]:
    """`train`, `train[:10%]`, `train+test`, as datasets reads them; all of them where there is none."""
    if split is None or str(split) == "all":
        return rows if split is None else concatenate_datasets([*rows.values()])
    pieces = ReadInstruction.from_spec(str(split)).to_absolute({name: len(each) for name, each in rows.items()})
    try:
        return concatenate_datasets([rows[piece.splitname].select(range(piece.from_, piece.to)) for piece in pieces])
    except IndexError as error:
        raise ValueError(f"the split {split} is not within the data ({error})") from error


def _files(source: dict[str, Any]) -> dict[str, list[tuple[str, str]]] | None:
    """{split: [(file as it is named in a message, file to open)]} of local data_files; None for all else."""
    given = source.get("data_files")
    if source.get("path") not in READ_HERE or not given or source.get("data_dir"):
        return None
    files = {}
    for split, entries in (given if isinstance(given, dict) else {"train": given}).items():
        files[split] = []
        for entry in entries if isinstance(entries, list | tuple) else [entries]:
            entry = os.path.expanduser(str(entry))
            found = glob.glob(entry, recursive=True)
            found = [entry] if Path(entry).is_file() else sorted(filter(os.path.isfile, found))
            if not found or Path(found[0]).suffix in {".zip", ".zst", ".lz4", ".7z"}:
                return None
            files[split] += [(each, each) for each in found]
    return files


def _kept(kind: str, name: str, file: str, source: dict[str, Any], limit: int | None) -> Dataset:
    """The rows of one file: they are read once, into datasets' cache, under a name that its content makes."""
    options = {key: source.get(key) for key in ("delimiter", "sep", "encoding", "field")}
    digest = xxhash.xxh3_128(repr((VERSION, kind, limit, options)).encode())
    with open(file, "rb") as content:
        while block := content.read(1 << 24):
            digest.update(block)
    cache = Path(source.get("cache_dir") or config.HF_DATASETS_CACHE) / "train_grpo" / f"{digest.hexdigest()}.arrow"
    if not cache.exists():
        rows = {"csv": csv_rows, "json": json_rows}[kind]
        _write(lambda: islice(rows(name, file, options), limit), name, cache)
    return Dataset.from_file(str(cache))


def _write(rows: Callable[[], Iterable[dict]], name: str, cache: Path) -> None:
    kinds: dict[str, dict[type, int]] = {}  # of each column: its types, and the first row that has each
    for number, row in enumerate(rows()):
        for column, value in row.items():
            kinds.setdefault(column, {}).setdefault(type(value), number)
    kinds = {key: types for key, types in kinds.items() if not key.startswith(UNNAMED) or types.keys() != {type(None)}}
    features = Features({column: _feature(name, column, types) for column, types in kinds.items()})
    if not features:
        raise Misfit(f"{name}: the data have no rows; choose another file or split")
    cache.parent.mkdir(parents=True, exist_ok=True)
    half_written = cache.with_suffix(f".{os.getpid()}")
    with ArrowWriter(path=str(half_written), features=features) as writer:
        iterator, done = iter(rows()), 0
        while batch := [*islice(iterator, AT_A_TIME)]:
            columns = {}
            for column, feature in features.items():
                values = [row.get(column) for row in batch]
                if isinstance(feature, Json):
                    values = [_dumped(each, f"{name}: row {done + i}: {column}") for i, each in enumerate(values)]
                try:
                    columns[column] = pa.array(values, feature())
                except OverflowError as error:
                    large = next(i for i, value in enumerate(values) if value is not None and abs(value) >= 2**63)
                    problem = f"row {done + large}: {column}: {values[large]} has more digits than can be kept"
                    raise Misfit(f"{name}: {problem}; write it as a text") from error
            writer.write_table(pa.table(columns))
            done += len(batch)
        writer.finalize()
    half_written.replace(cache)


def _feature(name: str, column: str, types: dict[type, int]) -> Value | Json:
    """How a column is kept; raises Misfit where no type holds all its values as they are."""
    kinds = {kind: number for kind, number in types.items() if kind is not type(None)}
    if len(kinds) > 1 and str in kinds:  # Json would hand on a text of digits as a number
        told = " and ".join(f"{WORDS[kind]} (row {number})" for kind, number in [*kinds.items()][:2])
        raise Misfit(f"{name}: {column} is {told}; make all of them texts")
    (kind,) = kinds if len(kinds) == 1 else (None if kinds else str,)
    plain = {str: "string", int: "int64", float: "float64", bool: "bool"}
    return Value(plain[kind]) if kind in plain else Json()


def _dumped(value: Any, place: str) -> str | None:
    text = None if value is None else json.dumps(value)
    try:
        if value is None or Json().decode_example(text) == value:
            return text
    except ValueError:  # of more than 64 bits
        pass
    raise Misfit(f"{place}: a number has more digits than can be kept; write it as a text")
