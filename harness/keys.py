"""Keys: which ones each section of config.yaml has, of which type, and what to say of a wrong one.

A section is the arguments of one function, so its keys and their types are that function's; pydantic checks the values.
"""

import difflib
import enum
import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, create_model
from pydantic.errors import PydanticUserError

from harness.errors import UserError, one_line
from harness.reward import logged_name
from harness.rewards_file import FROM_TRL, hints, plain, reward_named, why_no_reward

SECTIONS = ("model", "dataset", "prompts", "rewards", "training", "lora", "samples")
NEEDED = "model.pretrained_model_name_or_path dataset.path prompts.column training.output_dir samples.questions"
REFUSED = {  # upstream's keys that are not taken here, and what to do instead
    "training.max_prompt_length": "TRL has dropped it; set prompts.max_length, which drops longer prompts",
    "training.reward_weights": "set the weight of each entry of rewards",
    **dict.fromkeys(("training.model_init_kwargs", "training.trust_remote_code"), "set it in the section model"),
    "training.remove_unused_columns": "leave it out; the rewards need the data's columns",
    "training.resume_from_checkpoint": "run the same command with --resume",
    "training.ignore_data_skip": "leave it out; --resume goes on in the data where it was",
    "training.restore_callback_states_from_checkpoint": "leave it out; --resume restores what a run needs",
}
Error = Callable[[str, str], UserError]
Positive = Annotated[float, Field(gt=0)]
FINITE = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
# Where GRPOConfig takes any number or word, and a wrong one is reported after the model has been loaded, or never.
STRICTER = {
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps": PositiveInt,
    "num_generations num_iterations max_completion_length": PositiveInt,
    "steps_per_generation save_total_limit": PositiveInt | None,
    "temperature repetition_penalty num_train_epochs logging_steps save_steps": Positive,
    "top_p": Annotated[float, Field(gt=0, le=1)],
    "min_p": Annotated[float, Field(ge=0, le=1)] | None,
    "top_k": NonNegativeInt,
    "learning_rate beta": Annotated[float, Field(ge=0)],
    "generation_kwargs": dict | None,
    "output_dir": Annotated[str, Field(min_length=1)],
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "loss_type": Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"],
    "scale_rewards": Literal["group", "batch", "none"] | bool,
    "importance_sampling_level": Literal["token", "sequence"],
    "multi_objective_aggregation": Literal["sum_then_normalize", "normalize_then_sum"],
    "vllm_mode": Literal["server", "colocate"],
}
BY_KWARGS = {  # the usual ones of those that from_pretrained takes through **kwargs
    "dtype": Literal["auto", "float32", "bfloat16", "float16"] | None,
    "attn_implementation": str | None,
    "quantization_config": dict | None,
    "device_map": str | dict | None,
    "subfolder": str,
    "trust_remote_code": bool,
}
FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


@dataclass
class Prompts:
    """How rows of the data set become prompts; config.yaml says what each one is for."""

    column: str | list[str]
    rename: dict[str, str] | None = None
    system: str | None = None
    max_length: PositiveInt | None = None
    limit: PositiveInt | None = None
    drop_empty: bool = False
    drop_duplicates: bool = False


@dataclass
class Samples:
    """What is asked before and after training; see config.yaml."""

    questions: list[str]
    held_out: NonNegativeInt = 0
    shown: NonNegativeInt = 8


class Typed(str):
    """A value as it was typed on the command line; its key's type decides between this text and what YAML `read`."""

    read: Any = None


def typed_sections(merged: dict[str, Any], error: Error) -> dict[str, Any]:
    """The sections as they are written, in the types of their keys; `error` makes what is raised of (key, problem)."""
    for section, _, key in (name.partition(".") for name in NEEDED.split()):
        if merged.get(section, {}).get(key) is None:
            raise error(f"{section}.{key}", "is missing; put it back into config.yaml")
    if merged.get("lora") == {}:
        raise error("lora", "has no keys; write lora: null for none, or one of them, such as r: 16")
    kinds = _kinds_of_sections(str(merged["dataset"]["path"]))
    given: dict[str, Any] = dict.fromkeys(SECTIONS)
    for section, values in merged.items():
        if section not in SECTIONS:
            raise error(str(section), _unknown(str(section), [*SECTIONS, *kinds]))
        if section == "rewards":
            given[section] = typed_rewards(values, error, kinds)
        elif values is not None:
            given[section] = _typed_part(section, values, kinds, error)
    if not any(entry["weight"] for entry in (given["rewards"] or {}).values()):
        raise UserError("rewards: none has a weight other than 0, so there is nothing to learn; give one a weight")
    return given


def typed_rewards(entries: dict[str, Any], error: Error, kinds: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The section `rewards` in the types of its functions, as typed_sections; `kinds`: of the other sections' keys."""
    rewards = {str(name): entry for name, entry in entries.items() if entry is not None}
    for name, entry in rewards.items():
        same = [other for other in rewards if logged_name(other) == logged_name(name)]
        if problem := why_no_reward(name):
            raise error(f"rewards.{name}", problem)
        if not isinstance(entry, dict) or entry.get("weight") is None:
            problem = f"expected a mapping with its weight, got {entry!r}; write {name}: {{weight: 1}}"
            raise error(f"rewards.{name}", problem)
        if len(same) > 1:
            problem = f"would be logged as {logged_name(name)}, and so would {same[1]}; rename the folder of one"
            raise error(f"rewards.{name}", problem)
        kinds = kinds | _kinds(f"rewards.{name}", reward_named(name) or (lambda: None), FROM_TRL, {"weight": float})
    return {name: _typed_part(f"rewards.{name}", entry, kinds, error) for name, entry in rewards.items()}


def _typed_part(part: str, values: dict[str, Any], kinds: dict[str, Any], error: Error) -> dict[str, Any]:
    """The values of a section, or of one of the rewards, in the types of their keys."""
    for key in values:
        if f"{part}.{key}" not in kinds:
            raise error(f"{part}.{key}", _unknown(f"{part}.{key}", [*SECTIONS, *kinds]))
    return {key: _typed(f"{part}.{key}", kinds[f"{part}.{key}"], value, error) for key, value in values.items()}


def _kinds_of_sections(source: str) -> dict[str, Any]:
    """The type of every key, by its dotted name, but for the rewards'; of a file's format too: csv's delimiter."""
    kinds = dict(_upstream())
    if source in FORMATS.values():
        module = import_module(f"datasets.packaged_modules.{source}.{source}")
        kinds |= {f"dataset.{key}": Any for key in vars(getattr(module, f"{source.capitalize()}Config")())}
    return kinds


@functools.cache
def _upstream() -> dict[str, Any]:
    from datasets import load_dataset  # these imports take seconds: not before the files have been read
    from peft import LoraConfig
    from transformers import PreTrainedModel
    from trl import GRPOConfig

    stricter = {key: kind for keys, kind in STRICTER.items() for key in keys.split()}
    return (
        _kinds("model", PreTrainedModel.from_pretrained, {"config"}, BY_KWARGS)
        | _kinds("dataset", load_dataset, {"features", "download_config"}, {})
        | _kinds("prompts", Prompts, set(), {})
        | _kinds("training", GRPOConfig, {key.removeprefix("training.") for key in REFUSED}, stricter)
        | _kinds("lora", LoraConfig, set(), {})
        | _kinds("samples", Samples, set(), {})
    )


def _kinds(part: str, function: Callable, not_ours: set[str], more: dict[str, Any]) -> dict[str, Any]:
    """The type of each parameter that users may set, by its dotted name; `more` are stricter or additional ones."""
    types_of, parameters = hints(function), inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    kinds = {name: _as_literal(types_of.get(name, Any)) for name in named} | more
    return {f"{part}.{key}": kind for key, kind in kinds.items() if key not in not_ours}


def _as_literal(kind: Any) -> Any:
    """`kind`, with the words of an enumeration in its place: upstream's `Enumeration | str` takes no other string."""
    parts, origin = typing.get_args(kind), typing.get_origin(kind)
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return Literal[*[member.value for member in kind]]
    if origin in (typing.Union, types.UnionType):
        words = any(inspect.isclass(part) and issubclass(part, enum.Enum) for part in parts)
        return typing.Union[*[_as_literal(part) for part in parts if not (words and part is str)]]
    return list[_as_literal(parts[0])] if origin is list else kind


def _typed(key: str, kind: Any, value: Any, error: Error) -> Any:
    """`value` as a `kind`, as plain data."""
    try:
        model = create_model("Key", __config__=FINITE, value=(kind, ...))
    except PydanticUserError:  # a reward's annotation need not be a type
        return _typed(key, Any, value, error)
    first = None
    for reading in (_read(value, numbers=True), _read(value, numbers=False)):
        try:  # strictly where it is a number, or true would be 1, and 1 true
            valid = model.model_validate({"value": reading}, strict=isinstance(reading, int))
        except ValidationError as wrong:
            first = first or _problem(key, kind, reading, wrong.errors())
            continue
        found = plain(valid.model_dump()["value"])
        if isinstance(found, dict) and (lost := reading.keys() - {*found, *map(str, found)}):
            raise error(f"{key}.{lost.pop()}", f"unknown; it has {', '.join(found)}; fix or remove it")
        return found
    raise error(*first)


def _read(value: Any, numbers: bool) -> Any:
    """`value`, with what was typed as the number, true or false that YAML reads in it, or as a text."""
    if isinstance(value, dict):
        return {key: _read(each, numbers) for key, each in value.items()}
    if isinstance(value, Typed):
        return value.read if numbers and isinstance(value.read, bool | int | float) else str(value)
    return value


def _problem(key: str, kind: Any, value: Any, errors: list[Any]) -> tuple[str, str]:
    """(dotted key, what is wrong there and what to do)"""
    if errors[0]["loc"][-1] == "[key]":
        return key, f"its key {errors[0]['input']} should be text; write it in quotes"
    for part in errors[0]["loc"][1:]:  # of a value inside; where the type is a union, its branches have names here too
        if isinstance(value, dict) and part in value:
            key, value = f"{key}.{part}", value[part]
    if value is None:
        return key, "has no value; write one, or remove the line for the default"
    words, got = _words(kind), "nothing" if value == "" else one_line(value)
    begin = [word for word in words if word.startswith(str(value))]
    if near := begin or difflib.get_close_matches(str(value), words, n=1):
        return key, f"unknown word {got}, did you mean {near[0]}?; fix the value"
    others = [error["msg"].split(",")[0] for error in errors if error["type"] != "literal_error"]
    reasons = [message.removeprefix("Input ").removeprefix("String ") for message in others]
    reasons += [f"should be one of {', '.join(words[:8])}{', ...' if len(words) > 8 else ''}"] if words else []
    return key, f"{' or '.join(dict.fromkeys(reasons))}, got {got}; fix the value"


def _words(kind: Any) -> list[str]:
    parts = typing.get_args(kind)
    words = [str(part) for part in parts] if typing.get_origin(kind) is Literal else []
    return words or [word for part in parts for word in _words(part)]


def _unknown(key: str, known: list[str]) -> str:
    """What to do about a key that is not there: what has taken its place, or what was meant."""
    if key in REFUSED:
        return REFUSED[key]
    section, _, name = key.rpartition(".")
    anywhere, beside = ({o.rpartition(".")[2]: o for o in known if o.startswith(part)} for part in ("", section))
    names = anywhere | beside
    near = [name] if name in names else difflib.get_close_matches(name, beside, n=1, cutoff=0.5)
    return f"unknown{f', did you mean {names[near[0]]}?' if near else ''}; fix or remove it"
