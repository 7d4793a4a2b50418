"""Settings: config.yaml, --config files over it, --section.key values over these; each with its file and line."""

import argparse
import difflib
import functools
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError
from harness.keys import FORMATS, SECTIONS, Prompts, Samples, Typed, typed_rewards, typed_sections, upstream

ROOT = Path(__file__).resolve().parent.parent
# Of a section `dataset` that names a file. Without index_col pandas takes the first column for an index where each line
# ends in a comma, and answers become questions.
FILE_DEFAULTS = {"split": "train", "delimiter": "\t", "index_col": False}
HELP = """\
sections of config.yaml, and where their keys are documented:
  model      transformers AutoModelForCausalLM.from_pretrained   training   trl GRPOConfig
  dataset    datasets load_dataset                               lora       peft LoraConfig
  prompts, rewards, samples                                      the comments in config.yaml
  (every training key: python -c "from trl import GRPOConfig; help(GRPOConfig)")
"""


@dataclass
class Settings:
    """The sections of config.yaml, in upstream's types; keys that nobody set are absent, so upstream's defaults apply.

    `places`: file and line by key, the latest file's last; `options`: the switches of the command line.
    """

    model: dict[str, Any]
    dataset: dict[str, Any]
    prompts: Prompts
    rewards: dict[str, dict[str, Any]]
    training: dict[str, Any]
    lora: dict[str, Any] | None
    samples: Samples
    places: dict[str, str]
    options: argparse.Namespace = field(default_factory=argparse.Namespace)

    def as_yaml(self) -> str:
        """The effective settings; marked as complete, so that as a `--config` file they are laid over nothing."""
        return yaml.safe_dump({"complete": True} | self.sections(), allow_unicode=True, sort_keys=False, width=120)

    def sections(self) -> dict[str, Any]:
        """The same as plain values."""
        sections = {name: getattr(self, name) for name in SECTIONS}
        return sections | {"prompts": vars(self.prompts), "samples": vars(self.samples)}

    def error(self, keys: str | Iterable[str], problem: str) -> UserError:
        """`config.yaml:12: training.seed: PROBLEM`: with the place where the key, or its section, was set.

        Of several keys, whose values do not go together, the latest is named.
        """
        return _error(self.places, keys if isinstance(keys, str) else self.latest(*keys), problem)

    def latest(self, *keys: str) -> str:
        """Of keys whose values do not go together the one that was set last, as the others were there before it.

        Of those of one file, or of the command line, the first.
        """
        files = [*dict.fromkeys(place.rpartition(":")[0] for place in self.places.values())]
        ranks = [files.index(self.places[key].rpartition(":")[0]) if key in self.places else -1 for key in keys]
        return keys[ranks.index(max(ranks))]


class Loader(yaml.CSafeLoader):  # PyYAML's own reader stops at the ? of [高さは?, x]
    """Reads 1e-6 as a number, where YAML 1.1 wants 1.0e-6; nor is 010 eight, or 1:30 ninety."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in kinds if not tag.endswith((":int", ":float"))]
    for first, kinds in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
FLOAT = r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?$|[-+]?\d+[eE][-+]?\d+$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9]\d*)$"), list("-+0123456789"))
Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(FLOAT), list("-+.0123456789"))


def read_yaml(path: Path, file: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(content, `FILE:LINE` by dotted key) of a settings file, shown as `file`; raises UserError for what is wrong."""
    places: dict[str, str] = {}

    def note(node: yaml.Node, prefix: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            name, place = f"{prefix}{key.value}", f"{file}:{key.start_mark.line + 1}"
            if name in places:
                raise UserError(f"{place}: {name}: is set in line {places[name].split(':')[-1]} already; remove one")
            places[name] = place
            note(value, f"{name}.")

    try:
        note(yaml.compose(text := path.read_text(encoding="utf-8"), Loader=Loader), "")
        content = yaml.load(text, Loader=Loader)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check the name after --config") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark, begin = (getattr(error, name, None) for name in ("problem_mark", "context_mark"))
        line = f":{mark.line + 1}" if mark else ""
        where = f", in what begins in line {begin.line + 1}" if begin and begin.line != mark.line else ""
        hint = "is there a full-width space or colon?" if re.search(r"^\s*\u3000|[\w.-]\uff1a", text) else HINT
        raise UserError(f"{file}{line}: not YAML: {getattr(error, 'problem', error)}{where}; {hint}") from None
    if not isinstance(content, dict | None):
        raise UserError(f"{file}: not a mapping of sections; its top level takes {', '.join(SECTIONS)}")
    return content or {}, places


HINT = "look at this line and the one above: a space behind each colon, equal indentation, quotes around other marks"


def read_settings(arguments: list[str] | None = None, description: str = "") -> Settings:
    """The settings of a command line: config.yaml, each --config file over it, and single values over these.

    A file that is marked `complete: true`, as a run's own `output_dir/config.yaml` is, takes the place of all others.
    Raises UserError for a mistake, in one line.
    """
    options, typed = _command_line(arguments, description)
    merged, places = _merged([*_read(options.config), typed])
    given = typed_sections(merged, functools.partial(_error, places))
    for section, key in (("training", "output_dir"), ("model", "pretrained_model_name_or_path")):
        given[section][key] = os.path.expanduser(given[section][key])
    sections = {**given, "prompts": Prompts(**given["prompts"]), "samples": Samples(**given["samples"])}
    settings = Settings(**sections, places=places, options=options)
    if options.print_config:
        print(settings.as_yaml(), end="")
        sys.exit()
    return settings


def reward_settings(files: list[Path]) -> dict[str, dict[str, Any]]:
    """The section `rewards` of config.yaml and the files over it; without the seconds that the other sections take."""
    merged, places = _merged(_read(files))
    return typed_rewards(merged.get("rewards", {}), functools.partial(_error, places), {})


def versions() -> dict[str, str]:
    """Of the packages that decide what a run does."""
    return {name: version(name) for name in ("trl", "transformers", "torch", "datasets", "peft")}


# ---- where the values come from


def _command_line(arguments: list[str] | None, description: str) -> tuple[argparse.Namespace, tuple[dict, dict]]:
    """(the switches and files, (content, places) of the `--section.key VALUE`s, as if they were a file)."""
    parser = argparse.ArgumentParser(
        prog="train_grpo.py",
        usage="train_grpo.py [--config FILE ...] [--section.key VALUE ...] [--check | --rehearse | --resume]",
        description=description,
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", default=[], type=Path, metavar="FILE", help="over config.yaml")
    resume = "go on from the newest complete checkpoint; auto: start if there is none, do nothing if the run is done"
    parser.add_argument("--resume", nargs="?", const=True, default=False, choices=["auto"], help=resume)
    parser.add_argument("--check", action="store_true", help="check everything, print the plan, and stop")
    parser.add_argument("--rehearse", action="store_true", help="run a few steps: signal, memory, hours; see README.md")
    parser.add_argument("--price", type=float, metavar="P", help="with --rehearse: of an hour, for the cost of the run")
    parser.add_argument("--print_config", action="store_true", help="print the effective settings as YAML, and stop")
    parser.add_argument("--version", action="version", version=", ".join(map(" ".join, versions().items())))
    parser.error = _refuse
    options, rest = parser.parse_known_args(arguments)
    if options.rehearse and (options.check or options.resume):
        raise UserError("--rehearse: is a run of its own; leave --check and --resume out")
    if options.price and not options.rehearse:
        raise UserError("--price: goes with --rehearse")
    content: dict[str, Any] = {}
    places: dict[str, str] = {}
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise UserError(f"{name}: not an option; write --section.key VALUE or --config FILE")
        if "." not in name and name[2:] not in SECTIONS:
            names = {f"--{option}": f"--{option}" for option in vars(options)}
            names |= {f"--{key.partition('.')[2]}": f"--{key}" for key in upstream()}  # as TRL's scripts take them
            near = [names[found] for found in difflib.get_close_matches(name, names, n=1)]
            raise UserError(f"{name}: unknown option{f', did you mean {near[0]}?' if near else ''}; fix or remove it")
        if not equals and not rest:
            raise UserError(f"{name[2:]}: has no value; write {name} VALUE")
        value: Any = Typed(text if equals else rest.pop(0))
        with suppress(yaml.YAMLError):
            value.read = yaml.load(str(value), Loader=Loader)
        if value == "null" or value[:1] in ("[", "{"):
            value = value.read
        parts = name[2:].split(".")
        if parts[0] == "rewards" and len(parts) > 3:  # a reward model's name may hold dots: rewards.org/v0.1.weight
            parts = ["rewards", ".".join(parts[1:-1]), parts[-1]]
        places |= {".".join(parts[: i + 1]): "" for i in range(len(parts))}
        content = _laid_over(content, functools.reduce(lambda inner, part: {part: inner}, reversed(parts), value))
    return options, (content, places)


def _refuse(message: str) -> None:
    raise UserError(f"command line: {message}; see --help")


def _read(files: list[Path]) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """(content, places) of config.yaml and the files that are laid over it."""
    return [read_yaml(ROOT / "config.yaml", "config.yaml"), *(read_yaml(file, str(file)) for file in files)]


def _merged(sources: list[tuple[dict[str, Any], dict[str, str]]]) -> tuple[dict[str, Any], dict[str, str]]:
    """(content, places) of all sources, each laid over those before it."""
    merged: dict[str, Any] = {}
    places: dict[str, str] = {}
    for content, lines in sources:
        if content.pop("complete", False):
            merged, places = {}, {}
        for name, value in content.items():
            if name in SECTIONS and not isinstance(value, dict) and not (name == "lora" and value is None):
                got = f"{value}; see {name} in config.yaml" if value else "nothing; indent its keys below it"
                raise _error(lines, name, f"expected a mapping, got {got}")
        if "dataset" in content:
            content["dataset"] = _file_as_dataset(content["dataset"])
        if "path" in content.get("dataset", {}):  # a new path replaces the whole section
            merged.pop("dataset", None)
            places = {key: place for key, place in places.items() if not key.startswith("dataset.")}
        merged = _laid_over(merged, content)
        places = {key: place for key, place in places.items() if key not in lines} | lines  # the latest stand last
    return merged, places


def _laid_over(base: Any, overlay: Any) -> Any:
    """`overlay` over `base`, mapping by mapping, so that a few lines change a few values."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: _laid_over(base.get(key), value) for key, value in overlay.items()}


def _file_as_dataset(source: dict[str, Any]) -> dict[str, Any]:
    """`path: mydata/q.csv`, or data_files alone, as load_dataset wants it: path is the format, data_files the files."""
    files = first = source.get("data_files") or source.get("path")
    while isinstance(first, dict | list) and first:
        first = next(iter(first.values() if isinstance(first, dict) else first))
    first = Path(str(first))
    ending = next((end for end in map(str.lower, reversed(first.suffixes)) if end in FORMATS), None)
    if ending is None or first.is_dir() or (source.get("path") and source.get("data_files")):
        return source
    fits = {"split": not isinstance(files, dict), "delimiter": ending == ".tsv", "index_col": FORMATS[ending] == "csv"}
    defaults = {key: value for key, value in FILE_DEFAULTS.items() if fits[key]}
    return {**defaults, **source, "path": FORMATS[ending], "data_files": files}


def _error(places: dict[str, str], key: str, problem: str) -> UserError:
    known = key
    while known and known not in places:
        known = known.rpartition(".")[0]
    place = places.get(known)
    return UserError((f"{place}: {key}: {problem}" if place else f"{key}: {problem}").replace("\n", "⏎"))
