"""Read rows: the data set as it stands in its files. Text stays text, and no row is lost or changed without a word.

datasets' own readers guess: "2024-01-01" becomes a time, 0600001 a number, NA nothing, and one cell too many in a line
costs the first. So CSV, TSV and JSON are read by text_files.py, unless a setting is of datasets' reader (dtype, ...).
"""

import glob
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import (
    Dataset,
    DownloadManager,
    IterableDataset,
    Value,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.arrow_reader import ReadInstruction
from datasets.builder import BuilderConfig
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.json.json import JsonConfig
from datasets.packaged_modules.text.text import TextConfig
from pyarrow import parquet

from harness.before.kept_rows import kept_rows
from harness.before.policy import loading_problem
from harness.before.text_files import Misfit
from harness.errors import one_line
from harness.keys import FORMATS
from harness.settings import Settings

READ_HERE = {"csv": CsvConfig, "json": JsonConfig, "text": TextConfig}
OURS = {"sep", "delimiter", "encoding", "field", "index_col"} | {field.name for field in fields(BuilderConfig)}
LOAD_DATASETS = {"split", "streaming", "keep_in_memory", "save_infos", "num_proc", "verification_mode"}  # keywords


def read_rows(settings: Settings) -> Dataset:
    """The rows that the section `dataset` names, the first `prompts.limit` of them; raises UserError."""
    source, limit = dict(settings.dataset), settings.prompts.limit
    types = source.pop("features", None)
    if source.get("streaming") and limit is None:
        raise settings.error("prompts.limit", "streaming has to know where to stop; give a number of rows")
    if types is not None and not isinstance(types, dict):
        raise settings.error("dataset.features", "names the type of each column: {answer: int64}")
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
            raise settings.error("dataset.split", f"none given; choose one of {', '.join(map(str, rows))}")
        (rows,) = rows.values()
    if not len(rows):
        raise settings.error("dataset.path", "the data have no rows; choose another file or split")
    for column, kind in (types or {}).items():
        rows = _cast(settings, rows, column, kind)
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def _cast(settings: Settings, rows: Dataset, column: str, kind: Any) -> Dataset:
    """A column with the type that dataset.features asks for; raises UserError with the row that cannot have it."""
    key = f"dataset.features.{column}"
    if column not in rows.features:
        raise settings.error(key, f"there is no such column; the data have {', '.join(rows.features)}")
    try:
        feature = Value(kind) if isinstance(kind, str) else kind
        return rows.cast_column(column, feature)
    except Exception as error:  # pyarrow's, of many kinds: a type that is none, a text that is no number
        for number, value in enumerate(rows[column]):
            with suppress(AttributeError, TypeError, UnboundLocalError):
                try:
                    pa.array([value]).cast(feature.pa_type)
                except pa.ArrowInvalid:
                    problem = f"row {number} holds {str(value)[:40]!r}, which is no {kind}"
                    raise settings.error(key, f"{problem}; fix it, or leave the column as it is") from error
        problem = f"{kind} is no type for it ({one_line(error)}); use int64, float64, string or bool"
        raise settings.error(key, problem) from error


def _from_disk(source: dict[str, Any]) -> Dataset | dict[str, Dataset] | None:
    """What save_to_disk() has left in a folder, if `path` is one."""
    folder = Path(str(source.get("path")))
    saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
    if source.get("data_files") or not saved:
        return None
    rows = load_from_disk(str(folder))
    return _split(dict(rows) if isinstance(rows, dict) else {"train": rows}, source.get("split"))


def _read_here(source: dict[str, Any], limit: int | None) -> Dataset | dict[str, Dataset] | None:
    """The rows of CSV, TSV, JSON and text files; None where it is datasets that has to read."""
    files, kind = _files(source), source.get("path")
    if files is None:
        keywords = {key: value for key, value in source.items() if key not in LOAD_DATASETS}
        builder = load_dataset_builder(**keywords)
        files, kind = builder.config.data_files, builder.name
        _check_folder(str(source.get("path")), files or {}, source)
        if not files or builder.info.features:  # a card of the Hub may say the types
            return None
        loader = DownloadManager(dataset_name=builder.dataset_name, data_dir=source.get("data_dir"))
        local = {split: loader.download_and_extract([*of]) for split, of in files.items()}
        files = {split: [*zip(map(str, of), local[split], strict=True)] for split, of in files.items()}
    if kind == "parquet":
        for of in files.values():
            _check_alike([(name, dict(_columns(file))) for name, file in of])
    if kind not in READ_HERE:
        return None
    its_own = {field.name for field in fields(READ_HERE[kind])} - OURS
    if guessed := sorted(its_own & set(source) | ({"index_col"} if source.get("index_col") else set())):
        print(f"note: dataset.{guessed[0]} is an option of datasets' reader, which also guesses the columns' types")
        return None
    most, rows = limit if source.get("streaming") else None, {}
    for split, of in files.items():
        parts = [kept_rows(kind, *file, source, most) for file in of]
        types = [{key: _named(each) for key, each in part.features.items()} for part in parts]
        _check_alike([(name, columns) for (name, _), columns in zip(of, types, strict=True)])
        rows[split] = concatenate_datasets(parts)
    return _split(rows, source.get("split"))


def _check_folder(folder: str, files: dict[str, list], source: dict[str, Any]) -> None:
    """Raises Misfit where datasets would read some of a folder's files and leave the others out, without a word."""
    if not Path(folder).is_dir() or source.get("data_files") or source.get("data_dir"):
        return
    top = Path(folder).resolve()
    inside = (file for file in top.rglob("*") if file.suffix.lower() in FORMATS and file.is_file())
    there = {file for file in inside if not any(part[0] in "._" for part in file.relative_to(top).parts)}  # not hidden
    left = sorted(there - {Path(str(file)).resolve() for of in files.values() for file in of})
    if left and files:
        problem = f"of the files in {folder} datasets would not read {len(left)} ({left[0].name})"
        raise Misfit(f"{problem}; name those that you want: dataset: {{data_files: {folder}/*{left[0].suffix}}}")


def _check_alike(files: list[tuple[str, dict[str, str]]]) -> None:
    """Raises Misfit where several files, (name, type of each column), are not of the same columns and types."""
    for name, columns in files:
        for column in sorted({*columns, *files[0][1]}):
            here, first = columns.get(column, "not there"), files[0][1].get(column, "not there")
            if here != first:
                raise Misfit(f"{name}: the column {column} is {here}, in {files[0][0]} it is {first}; make them alike")


def _columns(file: str) -> Iterator[tuple[str, str]]:
    for field in parquet.read_schema(file):
        yield field.name, str(field.type)


def _named(feature: Any) -> str:
    kind = getattr(feature, "dtype", "of objects or lists")
    return {"string": "text"}.get(kind, kind)


def _split(rows: dict[str, Dataset], split: Any) -> Dataset | dict[str, Dataset]:
    """`train`, `train[:10%]`, `train+test`, as datasets reads them; all of them where there is none."""
    if split is None or str(split) == "all":
        return rows if split is None else concatenate_datasets([*rows.values()])
    try:
        pieces = ReadInstruction.from_spec(str(split)).to_absolute({name: len(each) for name, each in rows.items()})
        return concatenate_datasets([rows[piece.splitname].select(range(piece.from_, piece.to)) for piece in pieces])
    except Exception as error:  # AssertionError, ValueError, IndexError, KeyError
        raise ValueError(f"the split {split} is not there ({one_line(error)})") from error


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
            found = sorted(filter(os.path.isfile, glob.glob(entry, recursive=True)))
            found = [entry] if Path(entry).is_file() else found
            if not found and "://" not in entry:
                raise Misfit(f"there is no folder or file {Path(entry).absolute()}; fix the path")
            if not found or Path(found[0]).suffix in {".zip", ".zst", ".lz4", ".7z"}:
                return None
            files[split] += [(each, each) for each in found]
    return files
