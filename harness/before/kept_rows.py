"""Kept rows: those of a text file in datasets' cache, each column with a type that holds its values as they are."""

import json
import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from datasets import Dataset, Features, Json, Value, config
from datasets.arrow_writer import ArrowWriter
from datasets.features import features as upstream

from harness.before.text_files import (
    UNNAMED,
    WORDS,
    Misfit,
    csv_rows,
    json_rows,
    not_readable,
    spaced_header,
    text_rows,
)

READERS = {"csv": csv_rows, "json": json_rows, "text": text_rows}
AT_A_TIME = 10_000  # rows
VERSION = 2  # of what is kept on the disk: to be raised where a file is read otherwise than before
upstream.ujson_loads = json.loads  # with which a column of objects is decoded: ujson rounds, and knows 64 bits only


def kept_rows(kind: str, name: str, file: str, source: dict[str, Any], limit: int | None) -> Dataset:
    """The rows of one file: they are read once, into datasets' cache, under a name that its content makes."""
    options = {key: source.get(key) for key in ("delimiter", "sep", "encoding", "field")}
    if Path(file).is_dir():
        raise Misfit(f"{name}: an archive of several files; unpack it, and name the files")
    if ".tsv" in Path(name.lower()).suffixes and not (options["delimiter"] or options["sep"]):
        options["delimiter"] = "\t"
    digest = xxhash.xxh3_128(repr((VERSION, kind, limit, options, Path(file).suffix)).encode())
    with open(file, "rb") as content:
        while block := content.read(1 << 24):
            digest.update(block)
    cache = Path(source.get("cache_dir") or config.HF_DATASETS_CACHE) / "train_grpo" / f"{digest.hexdigest()}.arrow"
    if not cache.exists():
        try:
            _write(lambda: islice(READERS[kind](name, file, options), limit), name, cache)
        except UnicodeDecodeError as error:
            raise Misfit(f"{name}{not_readable(file, options['encoding'])}") from error
    if kind == "csv" and spaced_header(file, options):
        print(f"note: {name}: the spaces behind its commas are left out, as in its header")
    return Dataset.from_file(str(cache))


def _write(rows: Callable[[], Iterable[dict]], name: str, cache: Path) -> None:
    kinds: dict[str, dict[type, int]] = {}  # of each column: its types, and the first row that has each
    for number, row in enumerate(rows()):
        for column, value in row.items():
            kinds.setdefault(column, {}).setdefault(type(value), number)
    kinds = {key: types for key, types in kinds.items() if not key.startswith(UNNAMED) or types.keys() != {type(None)}}
    for column in kinds:
        if alike := [each for each in kinds if each != column and each.strip().lower() == column.strip().lower()]:
            raise Misfit(
                f"{name}: it has the columns {column!r} and {alike[0]!r}; give both the same name, or two names"
            )
    features = Features({column: _feature(name, column, types) for column, types in kinds.items()})
    if not features:
        raise Misfit(f"{name}: the data have no rows; choose another file or split")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(cache.parent, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        problem = f"the cache {cache.parent} cannot be written ({error.strerror})"
        raise Misfit(f"{problem}; set HF_HOME to a folder of your own") from error
    half_written = cache.with_suffix(f".{os.getpid()}")
    with ArrowWriter(path=str(half_written), features=features) as writer:
        iterator, done = iter(rows()), 0
        while batch := [*islice(iterator, AT_A_TIME)]:
            columns = {}
            for column, feature in features.items():
                values = [row.get(column) for row in batch]
                if isinstance(feature, Json):
                    values = [None if value is None else json.dumps(value) for value in values]
                try:
                    columns[column] = pa.array(values, feature())
                except OverflowError as error:
                    large = next(i for i, value in enumerate(values) if value is not None and abs(value) >= 2**63)
                    problem = f"row {done + large}: {column}: {values[large]} has more digits than can be kept"
                    raise Misfit(f"{name}: {problem}; write it as a text") from error
                except UnicodeEncodeError as error:  # "\ud800"
                    half = next(i for i, value in enumerate(values) if value and not _whole(value))
                    problem = f"row {done + half}: {column} holds half of a character, {error.object[error.start]!r}"
                    raise Misfit(f"{name}: {problem}; write the whole one") from error
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


def _whole(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
