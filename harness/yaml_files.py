"""YAML files: read with the line of each key; what YAML does not read, or reads as something else, in plain words."""

import re
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError, one_line
from harness.keys import SECTIONS

FULL_WIDTH = "a full-width space or colon; write : and spaces of half width"
NO_SPACE = re.compile(r"\s*(?:- )?([\w.-]+):[^\s:/\\]")  # seed:1
NO_VALUE = ("cannot start", "alphabetic", "alias", "tag", "mapping keys", "block sequence")  # YAML's words
ITEMS = "the items of a list stand below a key without a value, each with its - at the same place"


class Loader(yaml.CSafeLoader):  # PyYAML's own reader stops at the ? of [高さは?, x]
    """Reads 1e-6 as a number, where YAML 1.1 wants 1.0e-6."""


# Nor is 010 eight, or 1:30 ninety.
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in kinds if not tag.endswith((":int", ":float"))]
    for first, kinds in Loader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9]\d*)$"), list("-+0123456789"))
FLOAT = r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(FLOAT), list("-+.0123456789"))
Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def read_yaml(path: Path, file: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(content, `FILE:LINE` by dotted key) of a settings file, shown as `file`; raises UserError for what is wrong."""
    places: dict[str, str] = {}

    def check(key: yaml.Node, value: yaml.Node, prefix: str) -> None:
        if found := _look(key, value, not prefix, text.splitlines()):
            raise UserError(f"{file}:{found[0]}: {found[1]}")

    def note(node: yaml.Node, prefix: str) -> None:
        for item in node.value if isinstance(node, yaml.SequenceNode) else ():
            check(item, item, prefix)
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            name, place = f"{prefix}{key.value}", f"{file}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{place}: a key has to be a word, not a list or a mapping; write NAME: VALUE")
            if str(key.value).startswith("\u3000"):
                raise UserError(f"{place}: {FULL_WIDTH}")
            if name in places:
                raise UserError(f"{place}: {name}: is set in line {places[name].split(':')[-1]} already; remove one")
            check(key, value, prefix)
            places[name] = place
            note(value, f"{name}.")

    try:
        text = path.read_text(encoding="utf-8")
        note(yaml.compose(text, Loader=Loader), "")
        content = yaml.load(text, Loader=Loader)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check the name after --config") from None
    except RecursionError:
        raise UserError(f"{file}: a value of it (&) holds itself (*), or it is nested too deep; write it out") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not YAML: it is not UTF-8; save it as UTF-8") from None
    except yaml.YAMLError as error:
        if not getattr(error, "problem_mark", None):
            raise UserError(f"{file}: not YAML: {one_line(error)}; fix it there") from None
        line, words = _slip([*text.splitlines(), ""], error)
        raise UserError(f"{file}:{line}: not YAML: {words}") from None
    if not isinstance(content, dict | None):
        raise UserError(f"{file}: not a mapping of sections; its top level takes {', '.join(SECTIONS)}")
    return content or {}, places


def _slip(lines: list[str], error: yaml.MarkedYAMLError) -> tuple[int, str]:
    """(number of the line, what is wrong there and what to do) of lines that YAML does not read."""
    mark, problem = error.problem_mark, error.problem
    begin, context = error.context_mark or mark, error.context or ""
    for i, line in enumerate(lines):  # the mark is often a line too late
        if re.match(r"\s*\u3000|[ \w.-]+\uff1a", line, re.ASCII):
            return i + 1, FULL_WIDTH
        if i == mark.line and line.lstrip(" ").startswith("\t"):
            return i + 1, "a tab, which YAML does not take; indent by spaces"
    line = lines[mark.line]
    above = next((i for i in range(mark.line - 1, -1, -1) if _content(lines[i])), None)
    if "escape character" in problem:
        return mark.line + 1, "in double quotes a \\ begins a special character; use single quotes"
    if "quoted scalar" in context:
        return begin.line + 1, "the quote that opens here is not closed; close it"
    if any(words in problem for words in NO_VALUE):
        begins = lines[begin.line][begin.column]
        listed = ", or, where it is a list, in [ ] or in the lines below" if begins == "-" else ""
        return mark.line + 1, f"a value that begins with {begins} has to be in quotes{listed}"
    if "flow" in context:
        opened = lines[begin.line][begin.column]
        return begin.line + 1, f"the {opened} that opens here is not closed, or a comma is missing behind it"
    if "another document" in problem:
        return mark.line + 1, "--- begins a second document; leave it out"
    if "expected ':'" in problem:
        return begin.line + 1, _no_key(lines, begin.line)
    if "mapping values" in problem:
        if ":" in line[: mark.column]:
            return mark.line + 1, "a value that holds a colon and a space has to be in quotes"
        if above is not None and (NO_SPACE.match(lines[above]) or ":" not in _content(lines[above])):
            return above + 1, _no_key(lines, above)
        return mark.line + 1, _misplaced(lines, mark.line, above)
    if "expected key" in problem:
        if line[mark.column : mark.column + 1] in ("]", "}"):
            return mark.line + 1, f"a {line[mark.column]} that nothing opens; remove it, or put the value in quotes"
        if mark.column > _indent(line):
            return (
                mark.line + 1,
                "a quote closes before the end of the value; write the text in quotes of the other kind",
            )
        if line.lstrip().startswith("-"):
            return mark.line + 1, f"a - where a key should stand; {ITEMS}"
        return mark.line + 1, _misplaced(lines, mark.line, above)
    if "'-' indicator" in problem:
        return mark.line + 1, f"a key where the next - of a list should stand; {ITEMS}"
    if "<document start>" in problem:
        if (first := _indent(next(filter(_content, lines)))) > _indent(line):
            return mark.line + 1, f"is indented less than the first line, by {first}; write sections without spaces"
        return mark.line + 1, "something new begins here; a file of settings is one mapping of sections"
    return mark.line + 1, problem


def _look(key: yaml.Node, value: yaml.Node, section: bool, lines: list[str]) -> tuple[int, str] | None:
    """The same of a key and its value, of which YAML makes something; `section`: at the top of the file."""
    number = value.start_mark.line
    if not isinstance(value, yaml.ScalarNode) or value.style:
        if section and NO_SPACE.match(str(key.value)):
            return key.start_mark.line + 1, _no_key(lines, key.start_mark.line)
        return None
    if not key.style and NO_SPACE.match(str(key.value)) and (section or not value.value):
        name = NO_SPACE.match(str(key.value))[1]
        return key.start_mark.line + 1, f"a space is missing behind the colon of {name}"
    if section and value.value and number > key.start_mark.line:
        return number + 1, _no_key(lines, number)
    for i in range(number + 1, min(value.end_mark.line + 1, len(lines))):  # YAML joins these lines
        if re.match(r"\s*- ", lines[i]) and (i < value.end_mark.line or value.end_mark.column > _indent(lines[i])):
            return i + 1, f"a - inside the text of line {number + 1}; {ITEMS}"
    return None


def _no_key(lines: list[str], i: int) -> str:
    """What a line is that should be a key and is none."""
    line = _content(lines[i]).strip()
    if re.match(r"<{7}|={7}|>{7}", line):
        return "a mark of git, which could not merge two versions; choose one of them"
    if wrong := NO_SPACE.match(line):
        return f"a space is missing behind the colon of {wrong[1]}"
    word = line.lstrip("- ").split()[0]
    if re.match(r"\S+\s*=", line):
        return f"an = where YAML has a colon; write {word.partition('=')[0]}: VALUE"
    before = next((each for each in map(_content, reversed(lines[:i])) if each), "")
    if before.endswith(("|", ">")):
        return "text below a | or > has to be indented deeper than its key"
    return f"a colon is missing behind {word}" + (", or a - before it" if before.lstrip().startswith("-") else "")


def _misplaced(lines: list[str], i: int, above: int | None) -> str:
    """How a line is indented, where it fits none of those above it."""
    if above is None:
        return "is indented as nothing can be here"
    here, there = _indent(lines[i]), _indent(lines[above])
    if here > there:
        return f"is indented deeper than line {above + 1}, which has a value of its own; indent both alike"
    return f"is indented by {here}, and line {above + 1} by {there}; indent the keys of one section alike"


def _content(line: str) -> str:
    """Without a comment and the space at its end."""
    return re.sub(r"(^|\s)#.*", "", line).rstrip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
