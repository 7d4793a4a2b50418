"""Settings: config.yaml, --config files over it, --section.key values over these; each with its file and line."""

import argparse
import functools
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from harness.errors import UserError, one_line
from harness.keys import (
    FORMATS,
    SECTIONS,
    Prompts,
    Samples,
    Typed,
    Values,
    typed_rewards,
    typed_sections,
    unknown_key,
    upstream,
)
from harness.rewards_file import use

ROOT = Path(__file__).resolve().parent.parent
HELP = """\
sections of config.yaml, and where their keys are documented:
  model      transformers AutoModelForCausalLM.from_pretrained   training   trl GRPOConfig
  dataset    datasets load_dataset                               lora       peft LoraConfig
  prompts, rewards, samples                                      the comments in config.yaml
  (every training key: python -c "from trl import GRPOConfig; help(GRPOConfig)")
"""
# What a line looks like that YAML does not read, with PyYAML's words in the line below it.
HINTS = {
    r"escape|hexdecimal": r"a \ in double quotes; use single ones",
    r"\A\s*(<{7}|={7}|>{7})": "a mark of git, which could not merge two versions",
    r"\A *\t": "a tab; indent by spaces",
    r"\A\s*\u3000|\A[ \w.-]+\uff1a": "a full-width space or colon",
    r"\A *[\w.-]+ *=": "an = in place of a colon",
    r"cannot start any token|expected alphabetic": "a value that begins with a special sign; put it in quotes",
    r"scanning a quoted scalar|\A[^'\"#]*: *(['\"]).*\1 *\w.*\n.*expected key": "a quote not closed, or in the text",
    r"\A *[\w.-]+:[^\s:/\\]": "a space is missing after a colon",
    r"\A *[^-:\s][^:\n]*\n.*(expected ':'|mapping values)": "a missing colon",
    r"\A[^'\"]*: .*: .*\n.*mapping values": "a text that contains a colon; put it in quotes",
    r"mapping values|expected key|<document start>": "an indentation other than its neighbours', or a bracket too many",
}

Places = dict[str, str]  # `FILE:LINE` by dotted key; of the command line empty


@dataclass
class Settings:
    """The sections of config.yaml, in upstream's types; keys that nobody set are absent, so upstream's defaults apply.

    `places`: file and line by key, the latest file's last; `options`: the switches of the command line.
    """

    model: Values
    dataset: Values
    prompts: Prompts
    rewards: dict[str, Values]
    training: Values
    lora: Values | None
    samples: Samples
    places: Places
    options: argparse.Namespace = field(default_factory=argparse.Namespace)

    def as_yaml(self) -> str:
        """The effective settings; marked as complete, so that as a `--config` file they are laid over nothing."""
        content = {"complete": True} | self.sections()
        return yaml.dump(content, Dumper=Dumper, allow_unicode=True, sort_keys=False, width=120)

    def sections(self) -> Values:
        """The same as plain values."""
        sections = {name: getattr(self, name) for name in SECTIONS}
        return sections | {"prompts": vars(self.prompts), "samples": vars(self.samples)}

    def error(self, keys: str | Iterable[str], problem: str) -> UserError:
        """`config.yaml:12: training.seed: PROBLEM`: with the place where the key, or its section, was set.

        Of several keys, whose values do not go together, the one is named that was set last, as the others were there
        before it; of those of one file, or of the command line, the first.
        """
        key = keys if isinstance(keys, str) else self._latest(*keys)
        return _error(self.places, key, problem)

    def _latest(self, *keys: str) -> str:
        files = [place.rpartition(":")[0] for place in self.places.values()]
        ranks = {key: files.index(file) for key, file in zip(self.places, files, strict=True)}
        return max(keys, key=lambda key: ranks.get(key, -1))


def read_settings(arguments: list[str] | None = None, description: str = "") -> Settings:
    """The settings of a command line: config.yaml, each --config file over it, and single values over these.

    A file that is marked `complete: true`, as a run's own `output_dir/config.yaml` is, takes the place of all others.
    Raises UserError for a mistake, in one line.
    """
    options, rest = _parser(description).parse_known_args(arguments)
    if options.rehearse and (options.check or options.resume or options.placebo):
        raise UserError("--rehearse: is a run of its own; leave --check, --resume and --placebo out")
    if options.price and not options.rehearse:
        raise UserError("--price: goes with --rehearse")
    use(options.rewards_file)
    merged, places = _merged([*_files(options.config), _typed_values(rest, options)])
    given = typed_sections(merged, functools.partial(_error, places))
    for section, key in (("training", "output_dir"), ("model", "pretrained_model_name_or_path")):
        given[section][key] = os.path.expandvars(os.path.expanduser(given[section][key]))
    folder = given["training"]["output_dir"].rstrip("/")
    file = places["training.output_dir"].rpartition(":")[0]  # none of a folder that the command line names
    its_own = Path(file).parent.absolute() == Path(folder).absolute()
    if options.placebo and file and not its_own:
        given["training"]["output_dir"] = f"{folder}-placebo"
    given["prompts"] = Prompts(**given["prompts"])
    given["samples"] = Samples(**given["samples"])
    settings = Settings(**given, places=places, options=options)
    if options.print_config:
        print(settings.as_yaml(), end="")
        sys.exit()
    return settings


def reward_settings(files: list[Path]) -> dict[str, Values | None]:
    """The section `rewards` of config.yaml and the files over it; without the seconds that the other sections take."""
    merged, places = _merged(_files(files))
    entries = merged.get("rewards", {})
    return dict.fromkeys(entries) | typed_rewards(entries, functools.partial(_error, places), {})


def versions() -> dict[str, str]:
    """Of the packages that decide what a run does."""
    return {name: version(name) for name in ("trl", "transformers", "torch", "datasets", "peft")}


def _error(places: Places, key: str, problem: str) -> UserError:
    known = key
    while known and known not in places:
        known = known.rpartition(".")[0]
    place = places.get(known)
    where = f"{place}: " if place else ""
    return UserError(f"{where}{key}: {problem}".replace("\n", "⏎"))


# ---- files


class Loader(yaml.CSafeLoader):  # PyYAML's own reader stops at the ? of [高さは?, x]
    """Reads 1e-6 as a number, where YAML 1.1 wants 1.0e-6; nor is 010 eight, 1:30 ninety, or 2026-12-01 a date."""


INT = "tag:yaml.org,2002:int"
FLOAT = "tag:yaml.org,2002:float"
DATE = "tag:yaml.org,2002:timestamp"
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (INT, FLOAT, DATE)]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
DECIMAL = r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?$|[-+]?\d+[eE][-+]?\d+$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
Loader.add_implicit_resolver(INT, re.compile(r"[-+]?(0|[1-9]\d*)$"), list("-+0123456789"))
Loader.add_implicit_resolver(FLOAT, re.compile(DECIMAL), list("-+.0123456789"))


class Dumper(yaml.SafeDumper):
    """Puts a text in quotes that Loader would read as a number: 1e6."""


Dumper.add_implicit_resolver(FLOAT, re.compile(DECIMAL), list("-+.0123456789"))


def _files(files: list[Path]) -> list[tuple[Values, Places]]:
    """config.yaml and the files that are laid over it."""
    base = read_yaml(ROOT / "config.yaml", "config.yaml")
    return [base, *(read_yaml(file, str(file)) for file in files)]


def read_yaml(path: Path, file: str) -> tuple[Values, Places]:
    """A settings file, shown as `file`; raises UserError for what is wrong."""
    lines = []
    places = {}
    try:
        text = path.read_text(encoding="utf-8")
        lines = [*text.splitlines(), ""]
        loader = Loader(text)
        node = loader.get_single_node()
        _note(node, "", lines, places)
        content = node and loader.construct_document(node)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check the name after --config") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}{_not_yaml(error, lines)}") from None
    if not isinstance(content, dict | None):
        raise UserError(f"{file}: not a mapping of sections")
    # What << merges into a mapping is as if it stood in this.
    return content or {}, {name.replace("<<.", ""): f"{file}:{line}" for name, line in places.items()}


def _note(node: yaml.Node | None, name: str, lines: list[str], places: dict[str, int]) -> None:
    """The line of each key below a node; the key is made a text.

    Raises YAMLError for what YAML would read as something else.
    """
    if isinstance(node, yaml.ScalarNode) and not node.style:  # without quotes: YAML joins what stands in several lines
        joined = lines[node.start_mark.line + 1 : node.end_mark.line + 1]
        if any(line.lstrip().startswith("- ") for line in joined):
            raise yaml.MarkedYAMLError(
                problem="a - inside the text above; indent both alike", problem_mark=node.end_mark
            )
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _note(item, f"{name}.{i}", lines, places)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in (INT, "tag:yaml.org,2002:merge"):  # YAML would read No as false, and ~ as null
                key.tag = "tag:yaml.org,2002:str"
            inner = f"{name}.{key.value}".removeprefix(".")
            if inner in places:
                problem = f"{inner} is set in line {places[inner]} already"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            places[inner] = key.start_mark.line + 1
            _note(value, inner, lines, places)


def _not_yaml(error: Exception, lines: list[str]) -> str:
    """`:LINE: not YAML: PROBLEM`, in PyYAML's words, with a hint at what such a line may have."""
    mark = getattr(error, "problem_mark", None)
    if not mark:
        return f": not YAML: {one_line(error)}"
    if re.search("simple key|quoted scalar|flow", error.context or ""):  # of these the end is not found
        mark = error.context_mark
    for pattern, hint in HINTS.items():
        for number in (mark.line, mark.line - 1):  # the end of the line above may be what is wrong
            if re.search(pattern, f"{lines[number]}\n{error.context}: {error.problem}"):
                return f":{number + 1}: not YAML: {error.problem}; perhaps {hint}"
    return f":{mark.line + 1}: not YAML: {error.problem}"


def _merged(sources: list[tuple[Values, Places]]) -> tuple[Values, Places]:
    """All sources, each laid over those before it."""
    merged = {}
    places = {}
    for content, lines in sources:
        if content.pop("complete", False):
            merged = {}
            places = {}
        for name in SECTIONS:
            value = content.get(name, {})
            allowed = dict | None if name == "lora" else dict
            if not isinstance(value, allowed):
                remedy = f"write its keys below it, indented by ordinary spaces, or --{name}.KEY VALUE"
                raise _error(lines, name, f"expected a mapping, got {value or 'nothing'}; {remedy}")
        if "dataset" in content:
            content["dataset"] = _file_as_dataset(content["dataset"])
            if "path" in content["dataset"]:  # a new path replaces the whole section
                merged.pop("dataset", None)
                places = {key: place for key, place in places.items() if not key.startswith("dataset.")}
        merged = _laid_over(merged, content)
        for key in lines:  # the latest stand last
            places.pop(key, None)
        places |= lines
    return merged, places


def _laid_over(base: Any, overlay: Any) -> Any:
    """`overlay` over `base`, mapping by mapping, so that a few lines change a few values."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    return base | {key: _laid_over(base.get(key), value) for key, value in overlay.items()}


def _file_as_dataset(source: Values) -> Values:
    """`path: mydata/q.csv`, or data_files alone, as load_dataset wants it: path is the format, data_files the files."""
    if source.get("path") and source.get("data_files"):
        return source
    files = source.get("data_files") or source.get("path")
    first = files
    while isinstance(first, dict | list) and first:
        first = list(first.values())[0] if isinstance(first, dict) else first[0]
    first = Path(str(first))
    endings = [suffix.lower() for suffix in first.suffixes if suffix.lower() in FORMATS]
    if first.is_dir() or not endings:
        return source
    ending = endings[-1]  # .csv of answers.csv.gz
    defaults = {}
    if not isinstance(files, dict):  # by split
        defaults["split"] = "train"
    if ending == ".tsv":
        defaults["delimiter"] = "\t"
    if FORMATS[ending] == "csv":  # or pandas takes the first column for an index where each line ends in a comma
        defaults["index_col"] = False
    return defaults | source | {"path": FORMATS[ending], "data_files": files}


# ---- the command line


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_grpo.py",
        usage="train_grpo.py [--config FILE ...] [--section.key VALUE ...] [--check | --rehearse | --resume]",
        description=description,
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    resume = "go on from the newest complete checkpoint; auto: start if there is none, do nothing if the run is done"
    parser.add_argument("--config", action="append", default=[], type=Path, metavar="FILE", help="over config.yaml")
    parser.add_argument("--rewards_file", type=Path, metavar="FILE", help="in place of rewards.py; kept with the run")
    parser.add_argument("--resume", nargs="?", const=True, default=False, choices=["auto"], help=resume)
    parser.add_argument("--check", action="store_true", help="check everything, print the plan, and stop")
    parser.add_argument("--rehearse", action="store_true", help="run a few steps: signal, memory, hours; see README.md")
    parser.add_argument("--price", type=float, metavar="P", help="with --rehearse: dollars per hour, for its cost")
    parser.add_argument("--placebo", action="store_true", help="shuffle the rewards in each group: what chance does")
    parser.add_argument("--print_config", action="store_true", help="print the effective settings as YAML, and stop")
    parser.add_argument("--version", action="version", version=packages)
    parser.error = _refuse
    return parser


def _refuse(message: str) -> None:
    raise UserError(f"command line: {message}; see --help")


def _typed_values(rest: list[str], options: argparse.Namespace) -> tuple[Values, Places]:
    """The `--section.key VALUE`s, as if they were a file."""
    content = {}
    places = {}
    while rest:
        option, equals, text = rest.pop(0).partition("=")
        key = option.removeprefix("--")
        if key == option:
            raise UserError(f"{option}: not an option; write --section.key VALUE or --config FILE")
        if "." not in key and key not in SECTIONS:
            raise UserError(f"{option}: {unknown_key(key, [*(f'--{name}' for name in vars(options)), *upstream()])}")
        if not equals:
            if not rest:
                raise UserError(f"{key}: has no value; write {option} VALUE")
            text = rest.pop(0)
        value = _typed_value(text)
        parts = key.split(".")
        if parts[0] == "rewards" and "/" in key:  # a reward model's name may hold dots: rewards.org/v0.1.weight
            section, *dotted, last = parts
            parts = [section, ".".join(dotted), last]
        for length in range(len(parts), 0, -1):
            places[".".join(parts[:length])] = ""
            value = {parts[length - 1]: value}
        content = _laid_over(content, value)
    return content, places


def _typed_value(text: str) -> Any:
    """null, a [list], a {mapping}, a number, true or false; or else the text."""
    try:
        read = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError):
        return text
    if isinstance(read, bool | int | float):
        value = Typed(text)
        value.read = read
        return value
    if text == "null" or text.startswith(("[", "{")):
        return read
    return text
