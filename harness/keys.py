"""Keys: which ones each section of config.yaml has, of which type, and what to do about a wrong one.

A section is the arguments of one function, so its keys and their types are that function's; pydantic holds the values
against them.
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
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from harness.exits import UserError
from harness.rewarding import PASSED, columns, reward_functions, why_no_reward
from harness.values import typed_value

SECTIONS = ("model", "dataset", "prompts", "rewards", "training", "lora", "samples")
NEEDED = "model.pretrained_model_name_or_path dataset.path prompts.column training.output_dir samples.questions"
REFUSED = {  # upstream's keys that are not taken here, and what to do instead
    "training.max_prompt_length": "TRL has dropped it; set prompts.max_length, which drops longer prompts",
    "training.reward_weights": "set the weight of each entry of rewards",
    "training.model_init_kwargs": "set them in the section model",
    "training.trust_remote_code": "set model.trust_remote_code",
    "training.remove_unused_columns": "leave it out; the rewards need the data's columns",
    "training.resume_from_checkpoint": "run the same command with --resume",
    "training.restore_callback_states_from_checkpoint": "leave it out; --resume restores what a run needs",
}
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Where GRPOConfig takes any number or word, and a wrong one is reported after the model has been loaded, or never.
STRICTER = {
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps": PositiveInt,
    "num_generations num_iterations max_completion_length": PositiveInt,
    "steps_per_generation save_total_limit": PositiveInt | None,
    "temperature repetition_penalty num_train_epochs logging_steps save_steps": Positive,
    "top_p": Annotated[float, Field(gt=0, le=1)],
    "min_p": Annotated[float, Field(ge=0, le=1)] | None,
    "top_k": NonNegativeInt,
    "learning_rate beta": Annotated[float, Field(ge=0, allow_inf_nan=False)],
    "generation_kwargs": dict | None,
    "output_dir": Annotated[str, Field(min_length=1)],
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "loss_type": Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"],
    "scale_rewards": Literal["group", "batch", "none"] | bool,
    "importance_sampling_level": Literal["token", "sequence"],
    "multi_objective_aggregation": Literal["sum_then_normalize", "normalize_then_sum"],
    "vllm_mode": Literal["server", "colocate"],
}
UNSEEN = {  # the usual ones of those that from_pretrained takes through **kwargs
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

    column: str
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


def typed_sections(merged: dict[str, Any], error: Callable[[str, str], UserError]) -> dict[str, Any]:
    """The sections as they are written, in the types of their keys; `error` makes what is raised of (key, problem)."""
    for section, _, key in (name.partition(".") for name in NEEDED.split()):
        if merged.get(section, {}).get(key) is None:
            raise error(f"{section}.{key}", "is missing; put it back into config.yaml")
    if merged.get("lora") == {}:
        raise error("lora", "has no keys; write lora: null for none, or one of them, such as r: 16")
    rewards = {name: entry for name, entry in merged.get("rewards", {}).items() if entry is not None}
    for name, entry in rewards.items():
        if problem := why_no_reward(str(name)):
            raise error(f"rewards.{name}", problem)
        if not isinstance(entry, dict) or entry.get("weight") is None:
            problem = f"expected a mapping with its weight, got {entry!r}; write {name}: {{weight: 1}}"
            raise error(f"rewards.{name}", problem)
    kinds = {**_upstream(), "dataset": _upstream()["dataset"] | _of_the_format(str(merged["dataset"]["path"]))}
    for name in rewards:  # not kept between two calls: rewards.py is the user's
        function = reward_functions().get(name, lambda: None)
        kinds[f"rewards.{name}"] = _kinds(function, {*PASSED, *columns(function)}, {"weight": Finite})
    known = [*SECTIONS, *(f"{part}.{key}" for part in kinds for key in kinds[part])]

    def typed(part: str, values: dict[str, Any]) -> dict[str, Any]:
        """The values of a section, or of one of the rewards, in the types of their keys."""
        for key in values:
            if f"{part}.{key}" not in known:
                raise error(f"{part}.{key}", _unknown(f"{part}.{key}", known))
        return {key: typed_value(kinds[part][key], value, f"{part}.{key}", error) for key, value in values.items()}

    given: dict[str, Any] = dict.fromkeys(SECTIONS)
    for section, values in merged.items():
        if section not in SECTIONS:
            raise error(str(section), _unknown(str(section), known))
        if section != "rewards" and values is not None:
            given[section] = typed(section, values)
    given["rewards"] = {name: typed(f"rewards.{name}", entry) for name, entry in rewards.items()}
    if not any(entry["weight"] for entry in given["rewards"].values()):
        raise UserError("rewards: none has a weight other than 0, so there is nothing to learn; give one a weight")
    return given


@functools.cache
def _upstream() -> dict[str, dict[str, Any]]:
    """The type of each key, by section, but for the rewards."""
    from datasets import load_dataset  # these imports take seconds: not before the files have been read
    from peft import LoraConfig
    from transformers import PreTrainedModel
    from trl import GRPOConfig

    stricter = {key: kind for keys, kind in STRICTER.items() for key in keys.split()}
    return {
        "model": _kinds(PreTrainedModel.from_pretrained, {"config"}, UNSEEN),
        "dataset": _kinds(load_dataset, {"features", "download_config"}, {}),
        "prompts": _kinds(Prompts, set(), {}),
        "training": _kinds(GRPOConfig, {key.removeprefix("training.") for key in REFUSED}, stricter),
        "lora": _kinds(LoraConfig, set(), {}),
        "samples": _kinds(Samples, set(), {}),
    }


def _of_the_format(path: str) -> dict[str, Any]:
    """The keys that a data set has besides where it is read from a file: csv's delimiter, json's field."""
    if path not in FORMATS.values():
        return {}
    module = import_module(f"datasets.packaged_modules.{path}.{path}")
    return dict.fromkeys(vars(getattr(module, f"{path.capitalize()}Config")()), Any)


def _kinds(function: Callable, not_ours: set[str], more: dict[str, Any]) -> dict[str, Any]:
    """The type of each parameter of a function that users may set; `more` are stricter or additional ones."""
    try:
        hints = typing.get_type_hints(getattr(function, "__func__", function), include_extras=True)
    except Exception:  # a reward's annotation may name what is not there
        if function not in reward_functions().values():
            raise
        hints = {}
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    kinds = {name: _in_words(hints.get(name, Any)) for name in named} | more
    return {key: kind for key, kind in kinds.items() if key not in not_ours}


def _in_words(kind: Any) -> Any:
    """`kind`, with the words of an enumeration in its place: upstream's `Enumeration | str` takes no other string."""
    parts, origin = typing.get_args(kind), typing.get_origin(kind)
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return Literal[*[member.value for member in kind]]
    if origin in (typing.Union, types.UnionType):
        words = any(inspect.isclass(part) and issubclass(part, enum.Enum) for part in parts)
        return typing.Union[*[_in_words(part) for part in parts if not (words and part is str)]]
    return list[_in_words(parts[0])] if origin is list else kind


def _unknown(key: str, known: list[str]) -> str:
    """What to do about a key that is not there: what has taken its place, or what was meant."""
    if key in REFUSED:
        return REFUSED[key]
    section, _, name = key.rpartition(".")
    anywhere, beside = ({o.rpartition(".")[2]: o for o in known if o.startswith(part)} for part in ("", section))
    names = anywhere | beside
    near = [name] if name in names else difflib.get_close_matches(name, beside, n=1, cutoff=0.5)
    return f"unknown{f', did you mean {names[near[0]]}?' if near else ''}; fix or remove it"


def with_builder(source: dict[str, Any]) -> dict[str, Any]:
    """`path: mydata/q.csv`, or data_files alone, as load_dataset wants it: path is the format, data_files the files."""
    files = first = source.get("data_files") or source.get("path")
    while isinstance(first, dict | list) and first:
        first = next(iter(first.values() if isinstance(first, dict) else first))
    first = Path(str(first))
    ending = next((end for end in map(str.lower, reversed(first.suffixes)) if end in FORMATS), None)
    if ending is None or first.is_dir() or (source.get("path") and source.get("data_files")):
        return source
    defaults = {} if isinstance(files, dict) else {"split": "train"}
    defaults |= {"delimiter": "\t"} if ending == ".tsv" else {}
    # Or pandas takes the first column for an index where each line ends in a comma, and answers become questions.
    defaults |= {"index_col": False} if FORMATS[ending] == "csv" else {}
    return {**defaults, **source, "path": FORMATS[ending], "data_files": files}
