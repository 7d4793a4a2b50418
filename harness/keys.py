"""Keys: which ones each section of config.yaml has, and of which type.

A section is the arguments of one function or class, so its keys and their types are that one's; pydantic checks them.
"""

import functools
import inspect
import json
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from harness.errors import UserError, did_you_mean, one_line
from harness.reward import logged_name
from harness.rewards_file import FROM_TRL, hints, reward_named, why_no_reward

SECTIONS = ("model", "dataset", "prompts", "rewards", "training", "lora", "samples")
NEEDED = "model.pretrained_model_name_or_path dataset.path prompts.column training.output_dir samples.questions"
REFUSED = {  # upstream's keys that are not taken here, and what to do instead
    "training.max_prompt_length": "TRL has dropped it; set prompts.max_length, which drops longer prompts",
    "training.reward_weights": "set the weight of each entry of rewards",
    "training.model_init_kwargs": "set it in the section model",
    "training.trust_remote_code": "set it in the section model",
    "training.remove_unused_columns": "leave it out; the rewards need the data's columns",
    "training.resume_from_checkpoint": "run the same command with --resume",
    "training.ignore_data_skip": "leave it out; --resume goes on in the data where it was",
    "training.restore_callback_states_from_checkpoint": "leave it out; --resume restores what a run needs",
}
ELSEWHERE = {  # names of TRL's scripts, open-r1, axolotl, ms-swift, Unsloth and older versions of transformers
    "model_name_or_path": "model.pretrained_model_name_or_path",
    "model_name": "model.pretrained_model_name_or_path",
    "base_model": "model.pretrained_model_name_or_path",
    "torch_dtype": "model.dtype",
    "load_in_4bit": "model.quantization_config",
    "dataset_name": "dataset.path",
    "dataset_config": "dataset.name",
    "system_prompt": "prompts.system",
    "reward_funcs": "rewards",
    "reward_model": "rewards",
    "lr": "training.learning_rate",
    "optimizer": "training.optim",
    "batch_size": "training.per_device_train_batch_size",
    "micro_batch_size": "training.per_device_train_batch_size",
    "num_epochs": "training.num_train_epochs",
    "warmup_ratio": "training.warmup_steps",
    "evaluation_strategy": "training.eval_strategy",
    "max_new_tokens": "training.max_completion_length",
    "val_set_size": "samples.held_out",
    "logging_dir": "TENSORBOARD_LOGGING_DIR in the environment",
    "peft": "lora",
    "use_peft": "lora",
    "peft_config": "lora",
    "train_type": "lora",
    "adapter": "lora",
}
# Where GRPOConfig takes any number or word. Of a wrong one upstream says something when the model has been loaded, or
# nothing; the miniature, which would find some, is left out of runs of several processes.
STRICTER = {
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps": PositiveInt,
    "num_generations num_iterations max_completion_length ref_model_sync_steps": PositiveInt,
    "steps_per_generation generation_batch_size save_total_limit eval_accumulation_steps": PositiveInt | None,
    "temperature repetition_penalty num_train_epochs logging_steps save_steps": Annotated[float, Field(gt=0)],
    "sapo_temperature_neg sapo_temperature_pos": Annotated[float, Field(gt=0)],
    "eval_steps delta": Annotated[float, Field(gt=0)] | None,
    "top_p": Annotated[float, Field(gt=0, le=1)],
    "min_p": Annotated[float, Field(ge=0, le=1)] | None,
    "top_k": NonNegativeInt,
    "learning_rate beta weight_decay epsilon": Annotated[float, Field(ge=0)],
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
    "model.dtype": Literal["auto", "float32", "bfloat16", "float16"] | None,
    "model.attn_implementation": str | None,
    "model.quantization_config": dict | None,
    "model.device_map": str | dict | None,
    "model.subfolder": str,
    "model.trust_remote_code": bool,
}
FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
CONFIG = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False, ser_json_inf_nan="constants")


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


FEWEST = 8  # held-out questions; below it there is no interval, and so no verdict
FULL = 64


@dataclass
class Samples:
    """What is asked before and after training; see config.yaml."""

    questions: list[str]
    held_out: NonNegativeInt = 0
    shown: NonNegativeInt = 8


class Typed(str):
    """A number, true or false as it was typed on the command line. A key of text takes the text, others what YAML
    `read` in it."""

    read: bool | int | float


Kinds = dict[str, Any]  # the type of each key, by its dotted name
Values = dict[str, Any]  # of a section, by key
Error = Callable[[str, str], UserError]


# ---- which keys there are


@functools.cache
def upstream() -> Kinds:
    """Of all sections but the rewards."""
    from datasets import load_dataset  # these imports take seconds: not before the files have been read
    from peft import LoraConfig
    from transformers import PreTrainedModel
    from trl import GRPOConfig

    functions = {
        "model": PreTrainedModel.from_pretrained,
        "dataset": load_dataset,
        "prompts": Prompts,
        "training": GRPOConfig,
        "lora": LoraConfig,
        "samples": Samples,
    }
    kinds = dict(BY_KWARGS)
    for section, function in functions.items():
        kinds |= _kinds(section, function)
    for keys, kind in STRICTER.items():
        for key in keys.split():
            kinds[f"training.{key}"] = kind
    del kinds["model.config"], kinds["dataset.features"], kinds["dataset.download_config"]  # which are no plain values
    return {key: kind for key, kind in kinds.items() if key not in REFUSED}


def kinds_of_file(source: str) -> Kinds:
    """Those of a file's format: csv's delimiter."""
    if source not in FORMATS.values():
        return {}
    module = import_module(f"datasets.packaged_modules.{source}.{source}")
    config = getattr(module, f"{source.capitalize()}Config")
    return {f"dataset.{key}": Any for key in vars(config())}


def _kinds(part: str, function: Callable, not_ours: Container[str] = ()) -> Kinds:
    """Of the parameters of a function."""
    annotated = hints(function)
    kinds = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in not_ours and not parameter.kind.name.startswith("VAR_"):  # *args and **kwargs
            kinds[f"{part}.{name}"] = annotated.get(name, Any)
    return kinds


def unknown_key(key: str, keys: Iterable[str]) -> str:
    """What to do about a key that is not there: what has taken its place, or what was meant."""
    section, _, name = key.rpartition(".")
    if f"training.{name}" in REFUSED:
        return REFUSED[f"training.{name}"]
    known = [*SECTIONS, *keys]
    same = {other.rpartition(".")[2]: other for other in reversed(known)}  # in another section, or without one
    same |= ELSEWHERE
    if name in same:
        return f"unknown, did you mean {same[name]}?"
    beside = [other.removeprefix(f"{section}.") for other in known if other.startswith(section)]
    return "unknown" + did_you_mean(name, beside)


# ---- their values


def typed_sections(merged: Values, error: Error) -> Values:
    """The sections as they are written, in the types of their keys; `error` makes what is raised of (key, problem)."""
    for needed in NEEDED.split():
        section, _, key = needed.partition(".")
        if merged.get(section, {}).get(key) is None:
            raise error(needed, "is missing; put it back into config.yaml")
    kinds = upstream() | kinds_of_file(str(merged["dataset"]["path"]))
    given = dict.fromkeys(SECTIONS)
    for section, values in merged.items():
        if section not in SECTIONS:
            name = str(section)
            raise error(name, unknown_key(name, kinds))
        if section == "rewards":
            given[section] = typed_rewards(values, error, kinds)
        elif values is not None:
            given[section] = typed_part(section, values, kinds, error)
    if given["lora"] == {}:
        raise error("lora", "has no keys; write lora: null for none, or one of them, such as r: 16")
    entries = given["rewards"] or {}
    if not any(entry["weight"] for entry in entries.values()):
        raise error("rewards", "none has a weight other than 0, so there is nothing to learn")
    return given


def typed_rewards(entries: Values, error: Error, kinds: Kinds) -> dict[str, Values]:
    """The section `rewards` in the types of its functions; `kinds`: of the other sections' keys."""
    rewards = {str(name): entry for name, entry in entries.items() if entry is not None}
    typed = {}
    for name, entry in rewards.items():
        part = f"rewards.{name}"
        problem = why_no_reward(name) or _no_entry(entry, name, rewards)
        if problem:
            raise error(part, problem)
        function = reward_named(name)
        own = _kinds(part, function, FROM_TRL) if function else {}  # a reward model takes nothing but its weight
        own[f"{part}.weight"] = float
        typed[name] = typed_part(part, entry, kinds | own, error)
        if typed[name].get("weight") is None:
            raise error(part, "has no weight; write weight: 1, or 0 to log it alone")
    return typed


def _no_entry(entry: Any, name: str, rewards: Values) -> str | None:
    """What is wrong with an entry of `rewards`, or None."""
    if not isinstance(entry, dict):
        return f"expected a mapping with its weight, got {entry!r}"
    for other in rewards:
        if other != name and logged_name(other) == logged_name(name):
            return f"would be logged as {logged_name(name)}, and so would {other}; rename the folder of one"
    return None


def typed_part(part: str, values: Values, kinds: Kinds, error: Error) -> Values:
    """The values of a section, or of one of the rewards, in the types of their keys, as plain data."""
    typed = {}
    for name, value in values.items():
        key = f"{part}.{name}"
        if key not in kinds:
            raise error(key, unknown_key(key, kinds))
        typed[name] = _typed(key, kinds[key], value, error)
    return typed


def _typed(key: str, kind: Any, value: Any, error: Error) -> Any:
    """A value in its key's type: one of a file as it is; one that was typed as YAML reads it, or else as the text."""
    try:
        adapter = TypeAdapter(dict[str, kind], config=CONFIG)  # not `kind` alone: a dataclass takes no config
    except Exception as problem:  # pydantic's are of many kinds; a reward's annotation may be anything
        raise error(key, f"pydantic does not know its annotation ({one_line(problem)})") from problem
    problems = []
    for as_text in (False, True):
        reading = _read(value, as_text)
        try:
            found = _validated(adapter, reading)
        except ValidationError as problem:
            problems.append(problem)
            continue
        if isinstance(reading, dict):
            for name in reading:
                if str(name) not in found:  # a class drops what it does not have
                    raise error(f"{key}.{name}", "unknown" + did_you_mean(str(name), found))
        # These are handed on as they are written: JSON has no keys that are numbers, and 50 is not to become 50.0.
        if isinstance(reading, list | dict | int):
            return reading
        return found
    raise error(*_named(key, value, problems[0]))


def _read(value: Any, as_text: bool) -> Any:
    if isinstance(value, dict):
        return {key: _read(each, as_text) for key, each in value.items()}
    if isinstance(value, Typed):
        return str(value) if as_text else value.read
    return value


def _validated(adapter: TypeAdapter, value: Any) -> Any:
    """What pydantic makes of a value, as JSON has it."""
    valid = adapter.validate_python({"": value})
    if isinstance(value, int | list):  # and strictly: true is no 1, and 1 is not true
        valid = adapter.validate_json(json.dumps({"": value}, default=str), strict=True)
    return adapter.dump_python(valid, mode="json")[""]


def _named(key: str, value: Any, problem: ValidationError) -> tuple[str, str]:
    """(the key, or the one inside its mapping, what pydantic says of it)"""
    errors = problem.errors()
    for part in errors[0]["loc"][1:]:  # where the type is a union, its branches have names here too
        if isinstance(value, dict) and part in value:
            key = f"{key}.{part}"
            value = value[part]
    sentences = dict.fromkeys(each["msg"].removeprefix("Input ") for each in errors)
    got = one_line(errors[0]["input"]) or "nothing"
    if errors[0]["type"] == "list_type":
        got += f"; write [{got}]"
    return key, f"{' or '.join(sentences)}, got {got}"
