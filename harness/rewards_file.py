"""The user's rewards.py: which of its names are rewards, what is wrong with the others, and what each one needs.

It is imported only when it is asked for, and no torch is, so that `python rewards.py` is quick.
"""

import ast
import datetime
import difflib
import enum
import functools
import inspect
import typing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from harness.errors import UserError, in_short

# What TRL passes to every reward beside the data's columns.
FROM_TRL = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
SCORED = ("completions", "completion_ids")  # of these a reward has to take one


def rewards_py() -> ModuleType:
    """The user's rewards.py; raises UserError where it does not import."""
    try:
        import rewards
    except (Exception, SystemExit) as error:  # any mistake in the user's own file
        place = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"rewards.py{place}: does not import ({in_short(error)}); fix it there") from error
    return rewards


def source() -> str:
    """The text of rewards.py."""
    return Path(rewards_py().__file__).read_text(encoding="utf-8")


def own_callables() -> dict[str, Callable]:
    """What rewards.py itself makes under a public name and can be called, but for classes; nothing that it imports."""
    made = set()
    for node in ast.walk(ast.parse(source())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            made.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
    named = vars(rewards_py()).items()
    return {n: v for n, v in named if n in made and n[:1] != "_" and callable(v) and not inspect.isclass(v)}


def reward_functions() -> dict[str, Callable]:
    """The rewards that rewards.py itself makes, by name."""
    own = own_callables()
    return {name: own[name] for name in own if not why_not(own[name]) and set(SCORED) & set(parameters(own[name]))}


def reward_named(name: str) -> Callable | None:
    """What a name under `rewards` in the settings stands for, one that rewards.py imports too; None: a reward model."""
    return vars(rewards_py()).get(name)


def why_no_reward(name: str) -> str | None:
    """What is wrong with a name under `rewards` in the settings, or None: it names a reward, or a reward model."""
    if name in (known := vars(rewards_py())):
        return why_not(known[name])
    if "/" in name or Path(name).is_dir():
        return None
    own = reward_functions()
    rewards = [*own, *(each for each, value in known.items() if each not in own and not why_not(value))]
    near = difflib.get_close_matches(name, rewards, n=1, cutoff=0.5)
    problem = f"no such function in rewards.py{f', did you mean {near[0]}?' if near else ''}"
    for example in sorted((Path(__file__).parent.parent / "examples").glob("*.py")):
        if f"def {name}(" in example.read_text(encoding="utf-8"):
            return f"no such function in rewards.py, but in examples/{example.name}, which says how to use it"
    return f"{problem}; it has {', '.join(own)}; a reward model goes by its Hub name (owner/name) or folder"


def why_not(value: Any) -> str | None:
    """Why something in rewards.py is no reward, and what to do; None where it is one."""
    if inspect.isclass(value):
        return f"is a class; make one of it in rewards.py (NAME = {value.__name__}(...)), and name that"
    if not callable(value):
        return f"is no function but of type {type(value).__name__}; name one of rewards.py"
    if hasattr(value, "cache_info"):
        return "is cached (functools), and the lists that TRL passes cannot be; cache a function of one text instead"
    try:
        takes = parameters(value)
    except (TypeError, ValueError):  # some of those written in C
        return "does not say which parameters it takes; write a function with `completions` around it in rewards.py"
    if by_place := [name for name, each in takes.items() if each.kind is each.POSITIONAL_ONLY]:
        return f"takes {by_place[0]} by its place only, and TRL passes all by name; remove the / in rewards.py"
    takes_all = any(each.kind is each.VAR_KEYWORD for each in takes.values())  # as of a decorator's inner function
    if set(takes) & set(SCORED) or (takes_all and not columns(value)):
        return None
    problem = "has no parameter `completions` (or `completion_ids`), which TRL passes; name it so in rewards.py"
    return f"{problem}, or, where it makes a reward, call it there: NAME = {in_code(value)}(...), and name that"


def in_code(function: Callable) -> str:
    """The name that a function was written under."""
    return getattr(underlying(function), "__name__", type(function).__name__)


def underlying(function: Any) -> Any:
    """The plain function in a functools.partial, a bound method or an instance with __call__, or `function` itself."""
    while isinstance(function, functools.partial):
        function = function.func
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        function = type(function).__call__
    return getattr(function, "__func__", function)


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """By name; raises TypeError or ValueError where Python cannot tell."""
    return dict(inspect.signature(function).parameters)


def columns(function: Callable) -> list[str]:
    """The columns that a function needs if no setting has its name: its parameters without a default, not TRL's."""
    named = [p for p in parameters(function).values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [p.name for p in named if p.default is p.empty and p.name not in FROM_TRL]


def title(function: Callable) -> str | None:
    """The first line of its docstring, if it has one; of a functools.partial its function's."""
    while isinstance(function, functools.partial):
        function = function.func
    lines = (function.__doc__ or "").strip().splitlines()
    return lines[0] if lines else None


def hints(function: Callable) -> dict[str, Any]:
    """The type of each parameter that has one; an annotation that names what is not there costs none of the others."""
    function = underlying(function)
    with suppress(Exception):
        return typing.get_type_hints(function, include_extras=True)
    found, names = {}, getattr(function, "__globals__", {})
    for name, annotation in inspect.get_annotations(function).items():
        with suppress(Exception):
            one = SimpleNamespace(__annotations__={name: annotation})
            found |= typing.get_type_hints(one, globalns=names, include_extras=True)
    return found


def as_annotated(function: Callable, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings, which are plain data, in the types of the function: a word as the member of its enumeration."""
    from pydantic import PydanticUserError, TypeAdapter

    kinds, given = hints(function), dict(settings)
    for key in settings.keys() & kinds.keys():
        with suppress(PydanticUserError):  # an annotation need not be a type
            given[key] = TypeAdapter(kinds[key]).validate_python(settings[key])
    return given


def plain(value: Any) -> Any:
    """The reverse of as_annotated, for one value: what YAML and JSON can hold."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return value if isinstance(value, str | int | float | bytes | datetime.date | None) else str(value)
