"""Text files: the rows of CSV, TSV and JSON as they stand there, or what is wrong with them, with file and line."""

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
UNNAMED = "Unnamed: "  # and the number of a column without a name, as pandas calls it
SEPARATORS = {",": "commas", "\t": "tabs"}
WORDS = {str: "a text", int: "a number", float: "a number", bool: "true or false", dict: "an object", list: "a list"}


class Misfit(Exception):
    """What is wrong in a file, and where: `FILE:LINE: ...`."""


def csv_rows(name: str, file: str, options: dict[str, Any]) -> Iterator[dict[str, str | None]]:
    """Rows of a CSV or TSV: each cell is the text that stands there, an empty one None; in a TSV quotes are text."""
    style, delimiter = _style(options), _style(options)["delimiter"]
    csv.field_size_limit(2**31 - 1)
    with _open(file, options["encoding"]) as lines:
        reader, line, before = csv.reader(lines, **style), 0, 0
        try:
            header = next((cells for cells in reader if any(cells)), [])
            line = before = reader.line_num
            while header and not header[-1].strip():  # a comma at the end of each line makes no column
                header.pop()
            names = _names(header, f"{name}:{line}", delimiter)
            if "\0" in "".join(header):
                raise Misfit(f"{name}:{line}: is not UTF-8; save it as UTF-8, or set dataset.encoding (utf-16?)")
            reader = csv.reader(lines, **style, skipinitialspace=_spaced(header))
            for cells in reader:
                place, line = f"{name}:{line + 1}", before + reader.line_num
                if not cells:
                    continue  # an empty line
                if len(cells) < len(names) or any(map(str.strip, cells[len(names) :])):
                    few, text = "an empty cell is written too", "a text with commas stands in quotes"
                    found = f"{len(cells)} cells, where the header has {len(names)} ({', '.join(names)})"
                    raise Misfit(f"{place}: {found}; {few if len(cells) < len(names) else text}")
                yield {column: cell or None for column, cell in zip(names, cells, strict=False)}
        except csv.Error as error:
            open_quote = "unexpected end" in str(error)
            what = "a quote is opened here and never closed" if open_quote else f"{error}, in a row that begins here"
            raise Misfit(f'{name}:{line + 1}: {what}; within quotes a quote is written twice: ""') from error


def text_rows(name: str, file: str, options: dict[str, Any]) -> Iterator[dict[str, str | None]]:
    """The lines of a text file, each a row with the column `text`."""
    with _open(file, options["encoding"], newline=None) as lines:
        for line in lines:
            yield {"text": line.rstrip("\n") or None}


def spaced_header(file: str, options: dict[str, Any]) -> bool:
    """Whether a space stands behind each comma of the header: `query, answer`."""
    with _open(file, options["encoding"]) as lines:
        return _spaced(next((cells for cells in csv.reader(lines, **_style(options)) if any(cells)), []))


def _spaced(header: list[str]) -> bool:
    return len(header) > 1 and all(cell.startswith(" ") for cell in header[1:])


def _style(options: dict[str, Any]) -> dict[str, Any]:
    delimiter = (options["delimiter"] or options["sep"] or ",").replace("\\t", "\t")
    if len(delimiter) != 1:
        raise Misfit(f'dataset.delimiter: {delimiter!r} is not one character; write ; or "\\t"')
    return {"delimiter": delimiter, "strict": True} | ({"quoting": csv.QUOTE_NONE} if delimiter == "\t" else {})


def _names(header: list[str], place: str, delimiter: str) -> list[str]:
    """The columns' names, without the spaces around them; one without a name is called as pandas calls it."""
    names = [cell.strip() or f"{UNNAMED}{i}" for i, cell in enumerate(header)]
    if twice := [each for i, each in enumerate(names) if each in names[:i]]:
        raise Misfit(f"{place}: two columns are called {twice[0]!r}; rename one")
    if len(names) == 1 and any(mark in names[0] for mark in ",;\t|，" if mark != delimiter):
        raise Misfit(
            f"{place}: its columns are not separated by {SEPARATORS.get(delimiter, delimiter)}; set dataset.delimiter"
        )
    return names


def json_rows(name: str, file: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of JSON Lines, of a list of objects, or of the list that is one `field` of an object."""
    field = options["field"]
    with _open(file, options["encoding"], newline=None) as lines:
        first = next((line for line in lines if line.strip()), "").strip()
    with _open(file, options["encoding"], newline=None) as lines:
        # One object a line, unless the first line is only the beginning of something longer.
        if field is None and first.startswith("{") and first.endswith(("}", "},")):
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _object(_parsed(line, f"{name}:{number}"), f"{name}:{number}")
            return
        content = _parsed(lines.read(), name) if first else []
    if field is not None:
        if not isinstance(content, dict) or field not in content:
            has = f"it has {', '.join(content)}" if isinstance(content, dict) else "it is no object"
            raise Misfit(f"{name}: there is no field {field!r}; {has}; fix dataset.field")
        content = content[field]
    for number, row in enumerate(content if isinstance(content, list) else [content]):
        yield _object(row, f"{name}: row {number}")


def _parsed(text: str, place: str) -> Any:
    """The JSON of one line, at FILE:LINE, or of a whole FILE."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            raise Misfit(f"{place}: the key {max(keys, key=keys.count)!r} is there twice; remove one")
        return content

    def no_number(word: str) -> None:
        raise Misfit(f"{place}: {word} is no number of JSON; write null, or leave the row out")

    def finite(digits: str) -> float:
        return float(digits) if abs(float(digits)) < float("inf") else no_number(digits)

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=no_number, parse_float=finite)
    except json.JSONDecodeError as error:
        where = place if "\n" not in text.strip() else f"{place}:{error.lineno}"
        what = f"not JSON: {error.msg} (column {error.colno})"
        if where == place and text.rstrip().endswith(","):
            what = "a comma ends the line; remove it, or make the file a list in [ ]"
        elif "'" in text[error.pos : error.pos + 1]:
            what += "; texts stand in double quotes"
        raise Misfit(f"{where}: {what}; fix it there") from error


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise Misfit(f"{place}: is {WORDS.get(type(row), 'null')}, not an object with a key for each column")
    return row


def _open(file: str, encoding: str | None, newline: str | None = ""):
    """An open file, unpacked; behind the mark that Windows puts first."""
    lines = OPEN.get(Path(file).suffix, open)(file, "rt", encoding=encoding or "utf-8", newline=newline)
    if lines.read(1) != "\ufeff":
        lines.seek(0)
    return lines


def not_readable(file: str, encoding: str | None) -> str:
    """Where a file is not of its encoding, and what it may be: `:12: is not UTF-8; ...`."""
    encoding = encoding or "utf-8"
    with OPEN.get(Path(file).suffix, open)(file, "rb") as content:
        start = content.read(4)
    if start == b"PAR1":
        return " is Parquet; name it .parquet"
    if start == b"PK\x03\x04":
        return " is a spreadsheet or an archive; save it as CSV, UTF-8"
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f" is not {encoding.upper()}; save it as UTF-8, or set dataset.encoding: utf-16"
    number = 0
    with OPEN.get(Path(file).suffix, open)(file, "rb") as content, suppress(UnicodeDecodeError):
        for line in content:
            number += 1
            line.decode(encoding)
    known = "cp932 for Japanese Windows, cp1252 for Western Windows"
    return f":{number}: is not {encoding.upper()}; save it as UTF-8, or set dataset.encoding ({known})"
