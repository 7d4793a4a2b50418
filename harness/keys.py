"""Keys: which ones each section of config.yaml has, and of which type.

A section is the arguments of one function or class, so its keys and their types are that one's; pydantic checks them.
"""

import difflib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from harness.errors import UserError, one_line
from harness.reward import logged_name
from harness.rewards_file import FROM_TRL, hints, reward_named, why_no_reward

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
Positive, Share = Annotated[float, Field(gt=0)], Annotated[float, Field(ge=0, le=1)]
STRICTER = {  # where GRPOConfig takes any number, and a wrong one is reported by something else, or never
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps": PositiveInt,
    "num_generations num_iterations max_completion_length": PositiveInt,
    "steps_per_generation save_total_limit": PositiveInt | None,
    "temperature repetition_penalty num_train_epochs logging_steps save_steps": Positive,
    "top_p": Annotated[float, Field(gt=0, le=1)],
    "min_p": Share | None,
    "top_k": NonNegativeInt,
    "learning_rate beta": Annotated[float, Field(ge=0)],
    "generation_kwargs": dict | None,
    "output_dir": Annotated[str, Field(min_length=1)],
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "loss_type": Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"],
    "scale_rewards": Literal["group", "batch", "none"] | bool,
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

    def readings(self) -> list[Any]:
        return [str(self)] if self.read is None else [self.read, str(self)]


Error = Callable[[str, str], UserError]


def typed_sections(merged: dict[str, Any], error: Error) -> dict[str, Any]:
    """The sections as they are written, in the types of their keys; `error` makes what is raised of (key, problem)."""
    for section, _, key in (name.partition(".") for name in NEEDED.split()):
        if merged.get(section, {}).get(key) is None:
            raise error(f"{section}.{key}", "is missing; put it back into config.yaml")
    kinds = upstream() | kinds_of_file(str(merged["dataset"]["path"]))
    given: dict[str, Any] = dict.fromkeys(SECTIONS)
    for section, values in merged.items():
        if section not in SECTIONS:
            raise error(str(section), unknown_key(str(section), [*SECTIONS, *kinds]))
        if section == "rewards":
            given[section] = typed_rewards(values, error, kinds)
        elif values is not None:
            given[section] = typed_part(section, values, kinds, error)
    if given["lora"] == {}:
        raise error("lora", "has no keys; write lora: null for none, or one of them, such as r: 16")
    if not any(entry["weight"] for entry in (given["rewards"] or {}).values()):
        raise UserError("rewards: none has a weight other than 0, so there is nothing to learn; give one a weight")
    return given


@functools.cache
def upstream() -> dict[str, Any]:
    """The type of every key, by its dotted name, but for the rewards'."""
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
    named = {p.name: types_of.get(p.name, Any) for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return {f"{part}.{key}": kind for key, kind in (named | more).items() if key not in not_ours}


def kinds_of_file(source: str) -> dict[str, Any]:
    """Those of a file's format: csv's delimiter."""
    if source not in FORMATS.values():
        return {}
    module = import_module(f"datasets.packaged_modules.{source}.{source}")
    return {f"dataset.{key}": Any for key in vars(getattr(module, f"{source.capitalize()}Config")())}


def typed_rewards(entries: dict[str, Any], error: Error, kinds: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The section `rewards` in the types of its functions; `kinds`: of the other sections' keys."""
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
    return {name: typed_part(f"rewards.{name}", entry, kinds, error) for name, entry in rewards.items()}


def typed_part(part: str, values: dict[str, Any], kinds: dict[str, Any], error: Error) -> dict[str, Any]:
    """The values of a section, or of one of the rewards, in the types of their keys, as plain data."""
    found = {}
    for name, value in values.items():
        if (key := f"{part}.{name}") not in kinds:
            raise error(key, unknown_key(key, [*SECTIONS, *kinds]))
        try:
            adapter = TypeAdapter(kinds[key], config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
        except PydanticUserError:  # a reward's annotation need not be a type
            adapter = TypeAdapter(Any)
        problems: list[ValidationError] = []
        for reading in _readings(value):
            try:
                found[name] = adapter.dump_python(adapter.validate_python(reading), mode="json")
                break
            except ValidationError as problem:
                problems.append(problem)
        else:
            raise error(key, _problem(problems[0], value))
    return found


def _readings(value: Any) -> list[Any]:
    """A value of a file as it is; of the command line as what YAML reads in it, or else as a text."""
    if isinstance(value, dict):
        inside = {key: _readings(each) for key, each in value.items()}
        return [{key: each[i] for key, each in inside.items()} for i in (0, -1)]
    return value.readings() if isinstance(value, Typed) else [value]


def _problem(error: ValidationError, value: Any) -> str:
    inside = ".".join(str(part) for part in error.errors()[0]["loc"] if isinstance(value, dict) and part in value)
    messages = dict.fromkeys(each["msg"].removeprefix("Input ") for each in error.errors())
    got = "nothing" if value in ("", None) else one_line(value)
    return f"{f'{inside} ' if inside else ''}{' or '.join(messages)}, got {got}; fix the value"


def unknown_key(key: str, known: list[str]) -> str:
    """What to do about a key that is not there: what has taken its place, or what was meant."""
    if key in REFUSED:
        return REFUSED[key]
    section, _, name = key.rpartition(".")
    anywhere, beside = ({o.rpartition(".")[2]: o for o in known if o.startswith(part)} for part in ("", section))
    names = anywhere | beside
    near = [name] if name in names else difflib.get_close_matches(name, beside, n=1, cutoff=0.5)
    return f"unknown{f', did you mean {names[near[0]]}?' if near else ''}; fix or remove it"
