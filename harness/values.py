"""Values: what a text means for the type of its key, and what to say of one that does not fit."""

import difflib
import re
import typing
from collections.abc import Callable
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, ValidationError, create_model

from harness.exits import UserError, one_line

EXPECTED = {  # what pydantic's kinds of errors say that a value should be
    "int_type int_parsing int_from_float int_parsing_size": "a whole number",
    "float_type float_parsing": "a number",
    "finite_number": "a finite number",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le:g}",
    "bool_type bool_parsing": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "list_type sequence_str tuple_type": "a list",
    "dict_type mapping_type dataclass_type dataclass_exact_type": "a mapping",
    "none_required": "null",
    "is_instance_of": "of the type {class}",
}
EXPECTED = {name: words for names, words in EXPECTED.items() for name in names.split()}
MANY = 8  # words: where a key takes more, a message names the first ones only
LIKE_A_CALL = ConfigDict(arbitrary_types_allowed=True, extra="forbid")


class Loader(yaml.CSafeLoader):  # PyYAML's own stops at a question mark in [a list?, of questions?]
    """Reads 1e-6 as a number, where YAML 1.1 wants 1.0e-6."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


class Word(str):
    """A value of the command line that looks like a number or a boolean, which is in `read`; its key's type decides."""

    read: bool | int | float


def of_the_command_line(text: str) -> Any:
    """A value of the command line; only its key's type will tell whether a number, true or false is a name."""
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError:
        return text
    if isinstance(value, bool | int | float):
        word = Word(text)
        word.read = value
        return word
    return value if text == "null" or text[:1] in ("[", "{") else text


def typed_value(kind: Any, value: Any, key: str, error: Callable[[str, str], UserError]) -> Any:
    """`value` as a `kind`, as plain data; `error` makes what is raised of (key, problem)."""
    model, first = create_model("Key", __config__=LIKE_A_CALL, value=(kind, ...)), None
    for reading in (_read(value, True), _read(value, False)):
        try:  # strictly, or true would be a number, and 1 a boolean
            checked = model.model_validate({"value": reading}, strict=isinstance(reading, int))
            return checked.model_dump(exclude_unset=True)["value"]
        except ValidationError as wrong:
            first = first or (wrong.errors(), reading)
    raise error(*_problem(key, *first, kind))


def _read(value: Any, as_number: bool) -> Any:
    """`value`, with what it holds of the command line as numbers and booleans, or as strings."""
    if isinstance(value, Word):
        return value.read if as_number else str(value)
    return {key: _read(each, as_number) for key, each in value.items()} if isinstance(value, dict) else value


def _problem(key: str, errors: list[Any], value: Any, kind: Any) -> tuple[str, str]:
    """(dotted key, what is wrong there and what to do) of pydantic's errors about one value."""
    found = []  # (how deep in the value, its dotted key, error)
    for each in errors:
        where, inner, depth = key, value, 0
        for part in each["loc"][1:]:  # between keys and indices there are names of the type's branches
            inside = part in inner if isinstance(inner, dict) else isinstance(inner, list) and isinstance(part, int)
            if inside:
                where, inner, depth = f"{where}.{part}" if isinstance(inner, dict) else where, inner[part], depth + 1
        found.append((depth, where, each))
    deepest, where, first = max(found, key=lambda each: each[0])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return where, "unknown; fix or remove it"
    if first["input"] is None:
        return where, "has no value; write one, or remove the line for the default"
    got, expected = "nothing" if first["input"] == "" else one_line(first["input"]), []
    for each in [each for depth, _, each in found if depth == deepest]:
        if each["type"] == "literal_error":
            words = _words(kind)
            if near := difflib.get_close_matches(str(each["input"]), words, n=1):
                return where, f"unknown word {got}, did you mean {near[0]}?; fix the value"
            expected.append(f"one of {', '.join(words[:MANY])}{', ...' if len(words) > MANY else ''}")
        else:
            reason = EXPECTED.get(each["type"])
            expected.append(reason.format_map(each.get("ctx", {})) if reason else f"valid ({each['msg']})")
    return where, f"should be {' or '.join(dict.fromkeys(expected))}, got {got}; fix the value"


def _words(kind: Any) -> list[str]:
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return [word for word in parts if isinstance(word, str)]
    return [word for part in parts for word in _words(part)]
