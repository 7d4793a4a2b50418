"""Keys: which ones each section of config.yaml has, of which type, and what to do about a wrong one."""

import difflib
import functools
import inspect
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from jsonargparse import ArgumentParser
from jsonargparse import typing as kinds

from harness.exits import UserError, one_line
from harness.rewarding import PASSED, columns, reward_functions, why_no_reward

SECTIONS = ("model", "dataset", "prompts", "rewards", "training", "lora", "samples")
REFUSED = {  # upstream's keys that are not taken here, and what to do instead
    "training.max_prompt_length": "TRL has dropped it; set prompts.max_length, which drops longer prompts",
    "training.reward_weights": "set the weight of each entry of rewards",
    "training.model_init_kwargs": "set them in the section model",
    "training.trust_remote_code": "set model.trust_remote_code",
    "training.remove_unused_columns": "leave it out; the rewards need the data's columns",
    "training.resume_from_checkpoint": "run the same command with --resume",
    "training.restore_callback_states_from_checkpoint": "leave it out; --resume restores what a run needs",
}
number = kinds.restricted_number_type
POSITIVE = number("positive float", float, [(">", 0), ("<", math.inf)])
# Where GRPOConfig takes any number or word, and a wrong one is reported after the model has been loaded, or never.
STRICTER = {
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps": kinds.PositiveInt,
    "num_generations num_iterations max_completion_length": kinds.PositiveInt,
    "steps_per_generation save_total_limit": kinds.PositiveInt | None,
    "temperature repetition_penalty num_train_epochs logging_steps save_steps": POSITIVE,
    "top_p": number("positive float up to one", float, [(">", 0), ("<=", 1)]),
    "min_p": kinds.ClosedUnitInterval | None,
    "top_k": kinds.NonNegativeInt,
    "learning_rate beta": number("non negative float", float, [(">=", 0), ("<", math.inf)]),
    "generation_kwargs": dict | None,
    "output_dir": kinds.restricted_string_type("the name of a folder", "^.+$"),
    "seed": number("int from 0 to 4294967295", int, [(">=", 0), ("<", 2**32)]),
}
FINITE = number("FiniteNumber", float, [("<", math.inf), (">", -math.inf)])  # a reward's weight
UNSEEN = {  # the usual ones of those that from_pretrained takes through **kwargs
    "dtype": Literal["auto", "float32", "bfloat16", "float16"] | None,
    "attn_implementation": str | None,
    "quantization_config": dict | None,
    "device_map": str | dict | None,
    "subfolder": str,
    "trust_remote_code": bool,
}
FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
ONE_OF_ITS_WORDS = "loss_type scale_rewards importance_sampling_level multi_objective_aggregation vllm_mode"


@dataclass
class Prompts:
    """How rows of the data set become prompts; config.yaml says what each one is for."""

    column: str
    rename: dict[str, str] | None = None
    system: str | None = None
    max_length: kinds.PositiveInt | None = None
    limit: kinds.PositiveInt | None = None
    drop_empty: bool = False
    drop_duplicates: bool = False


@dataclass
class Samples:
    """What is asked before and after training; see config.yaml."""

    questions: list[str]
    held_out: kinds.NonNegativeInt = 0
    shown: kinds.NonNegativeInt = 8


def typed_sections(merged: dict[str, Any], error: Callable[[str, str], UserError]) -> dict[str, Any]:
    """The sections as they are written, in the types of their keys; `error` makes what is raised of (key, problem)."""
    for name, entry in merged["rewards"].items():
        if problem := why_no_reward(str(name)):
            raise error(f"rewards.{name}", problem)
        if not isinstance(entry, dict) or entry.get("weight") is None:
            problem = f"expected a mapping with its weight, got {entry!r}; write {name}: {{weight: 1}}"
            raise error(f"rewards.{name}", problem)
    parsers, never_null = _parsers(merged)
    known = [*SECTIONS, *(f"{part}.{action.dest}" for part in parsers for action in parsers[part]._actions)]

    def typed(part: str, values: dict[str, Any]) -> dict[str, Any]:
        """The values of a section, or of one of the rewards, in the types of their keys."""
        for key, value in values.items():
            if f"{part}.{key}" not in known:
                raise error(f"{part}.{key}", _unknown(f"{part}.{key}", known))
            if value is None and f"{part}.{key}" in never_null:
                raise error(f"{part}.{key}", "has no value; write one, or remove the line for the default")
        try:
            parsed = parsers[part].parse_object(values)
        except Exception as wrong:  # argparse's and jsonargparse's own kinds, each about one value
            key, problem = _in_one_line(str(wrong), values)
            raise error(f"{part}.{key}".rstrip("."), problem) from None
        return {key: _plain(parsed[key]) for key in values}

    given: dict[str, Any] = dict.fromkeys(SECTIONS)
    for section, values in merged.items():
        if section not in SECTIONS:
            raise error(str(section), _unknown(str(section), known))
        if section == "rewards":
            given[section] = {name: typed(f"rewards.{name}", entry) for name, entry in values.items()}
        elif values is not None:
            given[section] = typed(section, values)
    if not any(entry["weight"] for entry in given["rewards"].values()):
        raise UserError("rewards: none has a weight other than 0, so there is nothing to learn; give one a weight")
    return given


def _parsers(merged: dict[str, Any]) -> tuple[dict[str, ArgumentParser], set[str]]:
    """For each section, and each reward, a parser of its keys, from the signature of what they are passed to.

    And the keys whose type does not allow null, which jsonargparse lets pass for every type.
    """
    from datasets import load_dataset  # these imports take seconds: not before the files have been read
    from peft import LoraConfig
    from transformers import PreTrainedModel
    from trl import GRPOConfig

    stricter = {key: kind for keys, kind in STRICTER.items() for key in keys.split()}
    for key in ONE_OF_ITS_WORDS.split():  # upstream's list of the words is in its help
        about = GRPOConfig.__dataclass_fields__[key]
        stricter[key] = Literal[about.default, *re.findall(r"(?<!=)'(\w+)'", about.metadata["help"])]
    stricter["scale_rewards"] |= bool
    options: dict[str, Any] = {}  # of the format of the data: csv's delimiter, json's field
    if (path := merged["dataset"].get("path")) in FORMATS.values():
        module = import_module(f"datasets.packaged_modules.{path}.{path}")
        options = dict.fromkeys(vars(getattr(module, f"{path.capitalize()}Config")()), Any)
    parts = {  # the function it is passed to, its parameters that users may not set, stricter or additional types
        "model": (PreTrainedModel.from_pretrained, {"config"}, UNSEEN),
        "dataset": (load_dataset, {"features", "download_config"}, options),
        "prompts": (Prompts, set(), {}),
        "training": (GRPOConfig, {key.removeprefix("training.") for key in REFUSED}, stricter),
        "lora": (LoraConfig, set(), {}),
        "samples": (Samples, set(), {}),
    }
    for name in merged["rewards"]:
        function = reward_functions().get(name, lambda: None)
        parts[f"rewards.{name}"] = (function, {*PASSED, *columns(function)}, {"weight": FINITE})
    parsers, never_null = {}, set()
    for part, (function, not_ours, types) in parts.items():
        parser = parsers[part] = ArgumentParser(exit_on_error=False, add_help=False)
        parameters = inspect.signature(function).parameters
        skip = {*not_ours, *types} & set(parameters)
        parser.add_function_arguments(function, skip=skip)
        for key, kind in types.items():
            parser.add_argument(f"--{key}", type=kind)
        types = {key: parameter.annotation for key, parameter in parameters.items()} | types
        never_null |= {f"{part}.{key}" for key in types if not re.search("None|Optional|Any|empty", str(types[key]))}
    return parsers, never_null


def _in_one_line(message: str, values: dict[str, Any]) -> tuple[str, str]:
    """What jsonargparse says of a mistake in `values`, as (key, problem)."""
    if not (wrong := re.search(r'Parser key "(.*?)":(.*)', message, re.DOTALL)):
        return "", one_line(message)
    names = re.findall(r"Expected an? (?:<class '(.*?)'>|typing\.Literal\[(.*?)\])|Not of type ([^:\n]+)", message)
    names = dict.fromkeys("null" if "NoneType" in name else "".join(name) for name in names)
    expected = re.sub("(?<=[a-z])(?=[A-Z])", " ", " or ".join(names)).lower()  # PositiveInt -> positive int
    got = functools.reduce(operator.getitem, wrong[1].split("."), values)
    got = "nothing" if got in (None, "") else got
    problem = f"expected {expected}, got {got}" if expected else one_line(wrong[2])
    return wrong[1], f"{problem}; fix the value"


def _unknown(key: str, known: list[str]) -> str:
    """What to do about a key that is not there: what has taken its place, or what was meant."""
    if key in REFUSED:
        return REFUSED[key]
    section, _, name = key.rpartition(".")
    anywhere, beside = ({o.rpartition(".")[2]: o for o in known if o.startswith(part)} for part in ("", section))
    names = anywhere | beside
    near = [name] if name in names else difflib.get_close_matches(name, beside, n=1, cutoff=0.5)
    return f"unknown{f', did you mean {names[near[0]]}?' if near else ''}; fix or remove it"


def _plain(value: Any) -> Any:
    """A number of jsonargparse's own, such as PositiveInt, as int or float."""
    kind = next((kind for kind in type(value).__mro__ if kind in (bool, int, float, str)), None)
    return kind(value) if kind else value
