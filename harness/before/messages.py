"""Messages: a question, or a conversation in one of the usual shapes, becomes the chat messages that a template takes.

Every key of a turn goes to the template. What is read in another way than it is written is said; what cannot be read
is refused by its turn and key.
"""

import ast
import json
import re
from typing import Any

from datasets import LargeList, List

ROLES = {name: name for name in ("system", "user", "assistant", "tool")}
ROLES |= dict.fromkeys(("human", "prompter"), "user")
ROLES |= dict.fromkeys(("gpt", "model", "chatgpt", "bot", "ai"), "assistant")
ROLES |= dict.fromkeys(("function", "observation", "ipython"), "tool") | {"developer": "system"}
KEYS = {"role": ("role", "from"), "content": ("content", "value")}  # OpenAI's names, and ShareGPT's
LISTS = ("messages", "conversations", "conversation", "turns", "prompt")  # of the key, where messages lie one deeper
CALLS = ("tool_calls", "function_call")  # a turn that has one of these needs no text
TEXT_PARTS = ("text", "input_text", "output_text")
WRITTEN = re.compile(r"""\s*[\[{].*["'](role|from)["']\s*:.*[\]}]\s*""", re.DOTALL)  # messages, written out as text


class NoMessages(ValueError):
    """What is wrong, behind the number of the row: ` is null`, `, turn 1: content is null`."""


def as_messages(question: Any, system: str | None) -> list[dict[str, Any]]:
    """A question, or a conversation up to its last turn that is not the assistant's, as chat messages.

    Raises NoMessages.
    """
    return read_messages(question, system)[0]


def read_messages(question: Any, system: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The same, and what was read in another way than it is written."""
    said: list[str] = []
    if isinstance(question, str) and (written := _written_out(question)) is not None:
        question = written
        said.append("text that holds messages is read as these")
    if isinstance(question, str):
        if not question.strip():
            raise NoMessages(" is empty")
        turns = [{"role": "user", "content": question}]
    else:
        turns = [_turn(turn, f", turn {i}: ", said) for i, turn in enumerate(_turns(question))]
    kept = len(turns)
    while kept and turns[kept - 1]["role"] == "assistant":
        kept -= 1
    if kept < len(turns):
        said.append("where the last turn is the assistant's, it is cut off")
    turns = turns[:kept]
    if not {"user", "tool"} & {turn["role"] for turn in turns}:
        raise NoMessages(": no turn before the assistant's is a user's")
    if system and turns[0]["role"] == "system":
        said.append("a system turn of the data's own stays in the place of prompts.system")
    elif system:
        turns = [{"role": "system", "content": system}, *turns]
    return turns, [*dict.fromkeys(said)]


def without_filling(value: Any, feature: Any) -> Any:
    """`value` without the keys that Arrow has filled with None, as other rows have them; a Json keeps its own nulls."""
    if isinstance(value, dict) and isinstance(feature, dict):
        return {key: without_filling(each, feature[key]) for key, each in value.items() if each is not None}
    if isinstance(value, list) and isinstance(feature, List | LargeList):
        return [without_filling(each, feature.feature) for each in value]
    return value


def _written_out(text: str) -> Any:
    """The messages that a CSV holds as JSON, or as Python prints them; None for any other text."""
    if not (WRITTEN.fullmatch(text) and re.search(r"""["'](content|value)["']\s*:""", text)):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    raise NoMessages(f" looks like messages, but is neither JSON nor a list as Python prints it: {_shown(text)}")


def _turns(question: Any) -> list[Any]:
    if isinstance(question, dict):
        inside = [key for key, value in question.items() if value is not None]
        if len(inside) == 1 and inside[0] in LISTS:
            return _turns(question[inside[0]])
        columns = [value for value in question.values() if isinstance(value, list)]
        if any(isinstance(question.get(name), list) for name in KEYS["role"]) and len({*map(len, columns)}) == 1:
            # A list of structs as datasets' Sequence has it.
            return [{key: values[i] for key, values in question.items() if values} for i in range(len(columns[0]))]
        if any(str(key).lower() in (*KEYS["role"], *KEYS["content"]) for key in inside):
            return [question]
        raise NoMessages(f" holds a mapping with the keys {', '.join(map(str, inside)) or 'none'}, not messages")
    if question is None:
        raise NoMessages(" is null")
    if not isinstance(question, list):
        what = f"the {type(question).__name__} {_shown(question)}"
        raise NoMessages(f" holds {what}, neither text nor messages with role and content")
    if not question:
        raise NoMessages(" is an empty list")
    return question


def _turn(turn: Any, where: str, said: list[str]) -> dict[str, Any]:
    """One turn with OpenAI's names and all its other keys, which follow role and content."""
    if not isinstance(turn, dict):
        what = "is null" if turn is None else f"is the {type(turn).__name__} {_shown(turn)}"
        raise NoMessages(f"{where}{what}, not a mapping with role and content")
    left, found = dict(turn), {}
    sharegpt = {"from", "value"} & {str(key).lower() for key in turn}
    for ours, names in KEYS.items():
        theirs = [key for name in names for key in turn if str(key).lower() == name]
        # A key that Arrow has filled with None may stand beside the one that the row has.
        key = next((key for key in theirs if turn[key] is not None), theirs[0] if theirs else None)
        if key is None and not (ours == "content" and any(turn.get(call) for call in CALLS)):
            has = ", ".join(map(str, turn)) or "no keys"
            raise NoMessages(f"{where}{names[bool(sharegpt)]} is null or missing; the turn has {has}")
        if key not in (ours, None):
            said.append(f"{key} is read as {ours}")
        found[ours] = (key or ours, left.pop(key, None))
    key, role = found["role"]
    if not isinstance(role, str) or (known := ROLES.get(role.strip().lower())) is None:
        what = "null" if role is None else _shown(role)
        raise NoMessages(f"{where}{key} is {what}; it should be one of {', '.join(dict.fromkeys(ROLES.values()))}")
    if role != known:
        said.append(f"the role {role} is read as {known}")
    others = {key: value for key, value in left.items() if value is not None}
    (key, content), calls = found["content"], any(others.get(call) for call in CALLS)
    if calls and content in (None, []):
        content = ""  # for None a template that writes the content would write None
    text = _text(content, f"{where}{key}", said)
    if not (text.strip() or calls or known == "tool"):
        raise NoMessages(f"{where}{key} is empty")
    return {"role": known, "content": text, **others}


def _text(content: Any, where: str, said: list[str]) -> str:
    """The content of a turn; raises NoMessages where it holds anything but text."""
    if isinstance(content, str):
        return content
    if not (isinstance(content, list) and content):
        what = "null" if content is None else f"the {type(content).__name__} {_shown(content)}, not text"
        raise NoMessages(f"{where} is {what}")
    for i, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise NoMessages(f"{where}: part {i} is of type {kind}, and only text is trained on")
    said.append("text in several parts is joined")
    return "".join(part["text"] for part in content)


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return repr(text if len(text) <= 60 else text[:57] + "...")
