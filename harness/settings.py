"""Settings: config.yaml, the files and values laid over it, checked against upstream's own signatures."""

import copy
import difflib
import inspect
import math
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import yaml
from jsonargparse import ArgumentParser, get_loader

from harness.exits import UserError

try:
    import rewards
except Exception as error:  # whatever a mistake in the user's own file raises
    place = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
    raise UserError(f"rewards.py{place}: does not import ({type(error).__name__}: {error}); mend it") from error

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("model", "dataset", "prompts", "rewards", "training", "lora", "samples")
MOVED = {
    "training.max_prompt_length": "TRL has dropped it; set prompts.max_length, which drops longer prompts",
    "training.reward_weights": "set the weight of each entry of rewards",
    "training.model_init_kwargs": "set them in the section model",
    "training.trust_remote_code": "set model.trust_remote_code",
    "training.remove_unused_columns": "leave it out; the rewards need the data's columns",
    "training.resume_from_checkpoint": "run the same command with --resume",
}


# What upstream would find out late, or never: the smallest value that means something, and the words that are known.
AT_LEAST = {
    "prompts": {"limit": 1, "max_length": 1},
    "samples": {"held_out": 0},
    "training": {
        **dict.fromkeys(
            ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1
        ),
        **dict.fromkeys(("steps_per_generation", "num_iterations", "max_completion_length", "save_total_limit"), 1),
        **dict.fromkeys(("learning_rate", "temperature", "num_train_epochs", "logging_steps", "save_steps"), 1e-12),
        **{"num_generations": 2, "beta": 0},
    },
}
ONE_OF = {
    "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
}


@dataclass
class Prompts:
    """How rows of the data set become prompts; config.yaml says what each one is for."""

    column: str
    system: str | None = None
    max_length: int | None = None
    limit: int | None = None
    drop_empty: bool = False


@dataclass
class Samples:
    """What is asked before and after training; see config.yaml."""

    questions: list[str]
    held_out: int = 0


@dataclass
class Settings:
    """The sections of config.yaml, values parsed to upstream's types; `merged` is the same as YAML would hold it."""

    model: dict[str, Any]
    dataset: dict[str, Any]
    prompts: Prompts
    rewards: dict[str, dict[str, Any]]
    training: dict[str, Any]
    lora: dict[str, Any] | None
    samples: Samples
    merged: dict[str, Any]

    def as_yaml(self) -> str:
        """The effective settings; every section is there, so that the text stands alone as a `--config` file."""
        return yaml.safe_dump(self.merged, allow_unicode=True, sort_keys=False, width=120)


def read_settings(config_files: list[str], overrides: dict[str, str]) -> Settings:
    """Merge config.yaml, each file of `config_files` and the dotted `overrides`, in this order, and check every value.

    A file that holds every section of config.yaml stands alone: so a run's own `output_dir/config.yaml` repeats it.
    """
    merged = _read_yaml(ROOT / "config.yaml")
    for name in config_files:
        overlay = _read_yaml(Path(name))
        merged = overlay if set(SECTIONS) <= set(overlay) else _laid_over(merged, overlay)
    for key, value in overrides.items():
        section, *path = _split(key)
        loaded = get_loader("yaml")(value)
        if loaded is None or isinstance(loaded, dict | list):
            value = loaded  # anything else is parsed with its key's type, so that a name may look like a number
        for part in reversed(path):
            value = {part: value}
        _check_sections({section: value})
        merged = _laid_over(merged, {section: value})
    merged["rewards"] = {name: entry for name, entry in merged["rewards"].items() if entry is not None}
    _go_offline_without_a_network()
    return _checked(merged)


def _go_offline_without_a_network() -> None:
    """Where the Hub's name does not resolve, upstream would retry for half a minute a file before it says so."""
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    if "HF_HUB_OFFLINE" in os.environ or getproxies():  # a proxy resolves names for us
        return
    try:
        socket.getaddrinfo(endpoint, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it when it is imported, which is after this


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = get_loader("yaml")(
            path.read_text(encoding="utf-8")
        )  # unlike yaml.safe_load it reads 1e-6 as a number
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the name after --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}; mend that line") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a mapping of sections; its top level must be {', '.join(SECTIONS)}")
    _check_sections(content)
    return content


def _check_sections(content: dict[str, Any]) -> None:
    check_names(content, SECTIONS, "")
    for section, value in content.items():
        if not isinstance(value, dict) and not (section == "lora" and value is None):
            raise UserError(f"{section}: expected a mapping, got {value!r}; see {section} in config.yaml")


def _laid_over(base: dict, overlay: dict) -> dict:
    """`overlay` over `base`, mapping by mapping, so that a few lines change a few values."""
    result = copy.copy(base)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = _laid_over(base[key], value) if both else value
    return result


def _split(key: str) -> list[str]:
    """`training.seed` -> [training, seed]; a reward model's name may hold dots: rewards.org/model-v0.1.weight."""
    section, _, rest = key.partition(".")
    if section == "rewards" and rest.count(".") > 1:
        return [section, *rest.rsplit(".", 1)]
    return key.split(".")


def _checked(merged: dict[str, Any]) -> Settings:
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    accepted = _declare(parser, merged)
    for section, names in accepted.items():
        check_names(merged[section], names, section + ".")
    parsed = _parsed(parser, {section: merged[section] for section in accepted})
    # Only what was asked for goes on, so that upstream's defaults stay upstream's.
    given = {section: {key: parsed[section][key] for key in merged[section]} for section in accepted}
    given["rewards"] = {name: _checked_reward(name, entry) for name, entry in merged["rewards"].items()}
    merged = {section: given.get(section) for section in SECTIONS}
    _check_values(given)
    sections = {**merged, "prompts": Prompts(**given["prompts"]), "samples": Samples(**given["samples"])}
    if not any(entry["weight"] for entry in sections["rewards"].values()):
        raise UserError("rewards: none has a weight other than 0, so there is nothing to learn; give one a weight")
    return Settings(**sections, merged=merged)


def _check_values(given: dict[str, dict[str, Any]]) -> None:
    for section, minima in AT_LEAST.items():
        for key, least in minima.items():
            if (value := given[section].get(key)) is not None and not value >= least:
                bound = f"at least {least}" if isinstance(least, int) else "above 0"
                raise UserError(f"{section}.{key}: {value} makes no sense; give a number of {bound}")
    for key, words in ONE_OF.items():
        if (value := given["training"].get(key, words[0])) not in words:
            raise UserError(
                f"training.{key}: unknown {value!r}{_nearest(value, words)}; it is one of {', '.join(words)}"
            )


def _declare(parser: ArgumentParser, merged: dict[str, Any]) -> dict[str, list[str]]:
    """Give `parser` each section's arguments, from upstream's signatures; returns their names by section."""
    from datasets import load_dataset  # these imports take seconds: they wait until the files have been read
    from transformers import PreTrainedModel
    from trl import GRPOConfig

    names = {
        "model": parser.add_method_arguments(PreTrainedModel, "from_pretrained", "model", skip={"config"}),
        "dataset": parser.add_function_arguments(load_dataset, "dataset", skip={"features", "download_config"}),
        "prompts": parser.add_class_arguments(Prompts, "prompts"),
        "samples": parser.add_class_arguments(Samples, "samples"),
        "training": parser.add_class_arguments(
            GRPOConfig,
            "training",
            skip={key.removeprefix("training.") for key in MOVED} - {"max_prompt_length"},
        ),
    }
    if merged.get("lora") is not None:
        try:
            from peft import LoraConfig
        except ImportError:
            raise UserError("lora: peft is not installed; run pip install -r requirements.txt") from None

        names["lora"] = parser.add_class_arguments(LoraConfig, "lora")
    # What from_pretrained and load_dataset take through **kwargs no signature shows: the common ones, and the options
    # of the file formats (csv's delimiter, json's field).
    hidden = {
        "model.dtype": Literal["auto", "float32", "bfloat16", "float16"],
        "model.attn_implementation": str | None,
        "model.device_map": str | dict | None,
        "model.subfolder": str,
        "model.trust_remote_code": bool,
        "model.use_kernels": bool,
    }
    if (path := merged["dataset"].get("path")) in ("csv", "json", "parquet", "text"):
        module = import_module(f"datasets.packaged_modules.{path}.{path}")
        options = inspect.signature(getattr(module, f"{path.capitalize()}Config")).parameters
        hidden |= {f"dataset.{name}": Any for name in options if f"dataset.{name}" not in names["dataset"]}
    for name, kind in hidden.items():
        parser.add_argument(f"--{name}", type=kind)
        names[name.partition(".")[0]].append(name)
    return {section: [name.partition(".")[2] for name in dotted] for section, dotted in names.items()}


def _checked_reward(name: str, entry: Any) -> dict[str, Any]:
    """One entry of `rewards`: its weight, and the keyword arguments of the function of rewards.py that it names."""
    where = f"rewards.{name}"
    if not isinstance(entry, dict) or "weight" not in entry:
        raise UserError(f"{where}: expected a mapping with its weight, got {entry!r}; write {name}: {{weight: 1}}")
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--weight", type=float)
    names = ["weight"]
    functions = rewards.all_rewards()
    if name in functions:
        columns = {"prompts", "completions", *rewards.columns(functions[name])}  # these TRL passes
        names += parser.add_function_arguments(
            functions[name], skip=columns & set(inspect.signature(functions[name]).parameters)
        )
    elif "/" not in name and not Path(name).is_dir():
        raise UserError(
            f"{where}: no such function in rewards.py{_nearest(name, functions)}; it has {', '.join(functions)}; "
            "a reward model is named by its Hub name (owner/name) or folder"
        )
    check_names(entry, names, where + ".")
    parsed = _parsed(parser, entry, where + ".")
    if not math.isfinite(parsed["weight"]):
        raise UserError(f"{where}.weight: {parsed['weight']} is no weight; give a finite number")
    return {key: parsed[key] for key in entry}


def check_names(given: dict[str, Any], accepted: Iterable[str], prefix: str) -> None:
    """Raise UserError for the first key of `given` that is not in `accepted`, with the nearest one that is."""
    for name in given:
        if name not in accepted:
            if where := MOVED.get(f"{prefix}{name}"):
                raise UserError(f"{prefix}{name}: {where}")
            raise UserError(f"{prefix}{name}: unknown{_nearest(name, accepted)}; mend or remove it")


def _nearest(name: Any, names: Iterable[str]) -> str:
    match = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f", did you mean {match[0]}?" if match else ""


def _parsed(parser: ArgumentParser, values: dict[str, Any], prefix: str = "") -> Any:
    try:
        return parser.parse_object(values)
    except Exception as error:  # argparse's and jsonargparse's own kinds, each about one value
        message = str(error)
        key = re.search(r'Parser key "(.*?)"', message)
        kinds = re.findall(r"Expected an? (?:<class '(.*?)'>|typing\.Literal\[(.*?)\])", message)
        value = re.search(r"(?:Got value|Given value): (.*)", message)
        if not (key and kinds and value):
            raise UserError(prefix + " ".join(message.split())) from None
        kinds = " or ".join("null" if kind == "NoneType" else kind or choices for kind, choices in kinds)
        raise UserError(f"{prefix}{key[1]}: expected {kinds}, got {value[1]}; mend the value") from None
