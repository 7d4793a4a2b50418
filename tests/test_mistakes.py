"""Every mistake in the settings is one line with its file, line and key; a table a place."""

import pytest
import yaml
from conftest import ROOT, refused

import rewards
from harness.before.arguments import training_arguments
from harness.before.machine import check_machine
from harness.errors import UserError
from harness.keys import ELSEWHERE, NEEDED, SECTIONS, typed_rewards, unknown_key, upstream
from harness.settings import read_settings

DEMO = ["--config", str(ROOT / "demo/config.yaml")]


def said(arguments: list[str]) -> str:
    """What is said of the mistake on a command line, in one line, by what train_grpo.py calls first."""
    try:
        settings = read_settings(arguments)
        check_machine(settings)
        training_arguments(settings)
    except UserError as error:
        return str(error) if "\n" not in str(error) else f"several lines: {error}"
    return "nothing"


# Mistakes in a file: its text, the line that is named and, where there is one, the key; a word of the message
IN_A_FILE = {
    "training:\n  seed: 1\n  beta: 0\n  seed: 2\n": ("4: ", "training.seed is set in line 2"),
    "# mine\nlearning_rate: 1e-6\n": ("2: learning_rate: ", "training.learning_rate"),
    "training:\n  lora: {r: 4}\n": ("2: training.lora: ", "mean lora"),
    "training:\n  seed: 1\n  beta: x\n": ("3: training.beta: ", "number"),
    "training: {seed: 1:30}\n": ("1: training.seed: ", "1:30"),
    "# mine\n1: {seed: 2}\n": ("2: 1: ", "unknown"),
    "samples: {held_out: 3}\ntraining: 3\n": ("2: training: ", "mapping"),
    "rewards:\n  emoji_rewrd: {weight: 1}\n": ("2: rewards.emoji_rewrd: ", "emoji_reward"),
    "samples:\n  questions: a\n": ("2: samples.questions: ", "[a]"),
    "prompts:\n  rename: {1: q}\n": ("2: prompts.rename.1: ", "string"),
    "prompts:\n  rename: {No: 1}\n": ("2: prompts.rename.No: ", "string"),
    "training:\n  ~: 1\n": ("2: training.~: ", "unknown"),
    "training: {<<: {seed: x}}\n": ("1: training.seed: ", "integer"),
    "lora:\n  eva_config: {rho: 2, foo: 1}\n": ("2: lora.eva_config.foo: ", "unknown"),
    # What YAML reads as something else
    "training:\n  log_completions: 1\n": ("2: training.log_completions: ", "boolean"),
    "samples:\n  questions:\n  - a\n   - b\n": ("4: ", "a - inside"),
    "lora:\n  layers_to_transform: [true]\n": ("2: lora.layers_to_transform: ", "integer"),
    # What YAML does not read
    "training:\n  seed:1\n  beta: 0\n": ("2: ", "missing after"),
    "prompts:\n  system: Answer: briefly\n": ("2: ", "quotes"),
    'dataset:\n  path: "C:\\data"\n': ("2: ", "escape"),
    "prompts: &t\n  rename: *t\n": (" ", "recursion"),
    "training:\nseed: 1\n": ("1: training: ", "indent"),
    "training:\n  run_name: 'abc\n  seed: 1\n": ("2: ", "quote"),
    "# 日本語：\ntraining：\n  seed: 1\n": ("2: ", "full-width"),
    "training:\n  seed: 1\n  \tbeta: 0\n": ("3: ", "a tab; "),
    "training:\n  seed: 1\n    beta: 0\n": ("3: ", "indentation"),
    "training:\n  seed 1\n  beta: 0\n": ("2: ", "missing colon"),
    "training:\n  beta: 0\n  seed = 1\n": ("3: ", "an ="),
    "prompts:\n  system: 'Don't'\n  limit: 3\n": ("2: ", "quote"),
    "lora: {r: 4\ntraining: {seed: 1}\n": ("1: ", "}"),
    "prompts:\n  column: @query\n": ("2: ", "quotes"),
    'training:\n  output_dir: "C:\\Users\\me"\n': ("2: ", "single ones"),
    "lora: null\n---\ntraining: {seed: 1}\n": ("2: ", "document"),
    "training:\n<<<<<<< HEAD\n  seed: 1\n=======\n": ("2: ", "git"),
    "# \u2028\u2028\u2028training: [\n": ("5: ", "not YAML"),  # YAML takes it for the end of a line
    "- a\n": (" ", "mapping"),
    "training: !!python/object/apply:os.mkdir [executed]\n": ("1: ", "constructor"),
}


def test_mistakes_in_a_file_name_the_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong, file = [], tmp_path / "mine.yaml"
    for text, (place, word) in IN_A_FILE.items():
        file.write_text(text)
        message = said([*DEMO, "--config", str(file)])
        if not (message.startswith(f"{file}:{place}") and word in message):
            wrong.append((text, message))
    assert not wrong and not (tmp_path / "executed").exists()


# A word of the message, and the values that it is said of; those without a section are of training
VALUES = {
    "mean learning_rate": "learnin_rate=1",
    "mean model.dtype": "model.torch_dtype=auto",
    "unknown": "model.config=x rewards.length_reward.goal=9 rewards.length_reward.prompts=9",
    "missing": "output_dir=null",
    "no value": "loss_scale",
    "integer": "num_generations=8.5 num_generations=[8] num_generations=null max_steps=null seed=true lora.r=many "
    "samples.held_out=null rewards.emoji_reward.max_emoji=null",
    "number": "learning_rate=fast learning_rate=inf weight_decay=nan beta=true beta={} "
    "rewards.length_reward.weight=.inf rewards.owner/model-v0.1.weight=x",
    "valid": "prompts.column={} samples.questions=[a generation_kwargs=x",
    "greater than": "top_k=-1 top_p=0 repetition_penalty=0 learning_rate=-1 beta=-0.1 temperature=0 seed=-1 "
    "steps_per_generation=0 max_completion_length=0 num_iterations=-1 save_total_limit=0 gradient_accumulation_steps=0 "
    "ref_model_sync_steps=0 eval_steps=-1 generation_batch_size=0 "
    "samples.held_out=-1 save_steps=0 prompts.limit=0",
    "less than": "min_p=2 top_p=2 seed=4294967296",
    "at least": "num_generations=1 output_dir=",
    "' or '": "loss_type=drgrpo scale_rewards=grup vllm_mode=colocat importance_sampling_level=sequences "
    "multi_objective_aggregation=sum model.dtype=bf16 lora.bias=some",
    "select one of": "optim=admw_torch save_strategy=sometimes",
    "prompts.max_length": "max_prompt_length=256",
    "leave it out": "remove_unused_columns=true ignore_data_skip=true restore_callback_states_from_checkpoint=true",
    "--resume": "resume_from_checkpoint=x",
    "section model": "model_init_kwargs={}",
    "not supported": "auto_find_batch_size=true",
}  # fmt: skip
ZOO = "--rewards.emoji_reward null --rewards_file demo/zoo/rewards.py --rewards.kind_reward"
# The other mistakes of a command line: the place that is named, a word
OTHERS = {
    "--lora {}": ("lora: ", "null"),
    "--rewards.a/judge.weight 1 --rewards.b/judge.weight 1": ("rewards.a/judge: ", "b/judge"),
    "--config nowhere.yaml": ("nowhere.yaml: ", "--config"),
    "--learning_rate 1": ("--learning_rate: ", "mean training.learning_rate"),
    "--chek": ("--chek: ", "mean --check"),
    "--training max_steps=15": ("training: ", "--training.KEY"),
    "--rewards.emoji_reward.limits.low 3": ("rewards.emoji_reward.limits: ", "unknown"),
    "--rewards_file nowhere.py": ("nowhere.py: ", "No such file"),
    f"{ZOO}.wieght 1": ("rewards.kind_reward.wieght: ", "mean weight"),
    f"{ZOO} {{}}": ("rewards.kind_reward: ", "weight"),
    "--rehearse --check": ("--rehearse: ", "--check"),
    "--rehearse --resume": ("--rehearse: ", "--resume"),
    "--price 2": ("--price: ", "--rehearse"),
    "--resume now": ("command line: ", "auto"),
}


def test_mistakes_on_the_command_line(monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = [(line, place, word) for line, (place, word) in OTHERS.items()]
    for word, values in VALUES.items():
        for value in values.split():
            key = value if "." in value.partition("=")[0] else f"training.{value}"
            rows.append((f"--{key}", f"{key.partition('=')[0]}: ", word))
    wrong = []
    for line, place, word in rows:
        message = said([*DEMO, *line.split()])
        if not (message.startswith(place) and word in message.removeprefix(place)):
            wrong.append((line, message))
    assert not wrong


# A file with values that do not go together with those below it or, if any, on the command line; the key that is named
LATEST = {
    "training: {per_device_train_batch_size: 10}": "mine:1: training.per_device_train_batch_size",
    "training: {per_device_train_batch_size: 10} --training.num_generations=4": "training.num_generations",
    "training: {num_generations: 6, per_device_train_batch_size: 24, eval_strategy: steps}": (
        "mine:1: training.per_device_eval_batch_size"
    ),
    "training: {generation_batch_size: 64} --training.steps_per_generation=2": "training.steps_per_generation",
    "training: {load_best_model_at_end: true} --training.save_strategy=epoch": "training.save_strategy",
    "training: {lr_scheduler_type: reduce_lr_on_plateau}": "mine:1: training.lr_scheduler_type",
    "model: {quantization_config: {load_in_4bit: true}} --lora=null": "lora",
    "lora: {target_modules: x.*} --lora.layers_to_transform=1": "lora.layers_to_transform",
}


def test_other_tools_names_lead_to_keys_that_there_are():
    keys = upstream()
    assert len(ELSEWHERE) <= 25 and not {key.rpartition(".")[2] for key in keys} & set(ELSEWHERE)
    assert {key for key in ELSEWHERE.values() if " " not in key} <= {*keys, *SECTIONS}
    for section in ("", "training.", "model."):
        assert [name for name in ELSEWHERE if ELSEWHERE[name] not in unknown_key(f"{section}{name}", keys)] == []


def test_of_values_that_do_not_go_together_the_one_set_last_is_named(tmp_path):
    wrong, file = [], tmp_path / "mine.yaml"
    for values, expected in LATEST.items():
        text, option, more = values.partition(" --")
        file.write_text(text)
        message = said([*DEMO, "--config", str(file), *([f"--{more}"] if option else [])])
        if not message.replace(str(file), "mine").startswith(f"{expected}: "):
            wrong.append((values, message))
    assert wrong == []
    file.write_text("training:\n  seed: 1\n  beta: 0\n")
    error = read_settings([*DEMO, "--config", str(file), "--samples.shown=3"]).error
    assert str(error(["training.beta", "training.seed", "training.fp16"], "x")) == f"{file}:3: training.beta: x"
    assert str(error(["nowhere.key", "training.seed", "samples.shown"], "x")) == "samples.shown: x"


# The same of values that only the data and the model tell not to go together: a file, the key that is named
LATEST_WITH_DATA = {
    "prompts: {limit: 4}": "prompts.limit",
    "training: {per_device_train_batch_size: 2048}": "training.per_device_train_batch_size",
    "samples: {held_out: 0}": "samples.held_out",
    "training: {eval_strategy: 'no'}": "training.eval_strategy",
    "training: {max_completion_length: 510}": "training.max_completion_length",
}


def test_of_values_that_do_not_fit_the_data_or_the_model_the_one_set_last_is_named(tiny, tmp_path):
    file, first, wrong = tmp_path / "mine.yaml", tmp_path / "first.yaml", []
    more = ["--training.eval_strategy=steps", "--training.eval_on_start=true", "--samples.held_out=8"]
    best = "--training.metric_for_best_model=rewards/emoji_reward/mean"
    first.write_text(read_settings([*tiny, *more, best]).as_yaml())  # in a file, as mine is over it
    for text, key in LATEST_WITH_DATA.items():
        file.write_text(text)
        message = refused(["--config", str(first), "--config", str(file), "--check"])
        wrong += [] if message.startswith(f"{file}:1: {key}: ") else [(text, message)]
    assert wrong == []


# The parameter of a reward, its value in a file, and what is handed on or, of a message, the place and a word
CLASSES = """
import dataclasses, enum
from typing import Annotated
from pydantic import Field
Tone = enum.Enum("Tone", {"SOFT": "soft"})
Style = dataclasses.make_dataclass("Style", [("tone", str, "")])
"""
REWARD_SETTINGS = [
    ("bonus=1", float("inf"), float("inf")),
    ("bonus: int = 1", "2", 2),
    ("bonus: Tone = 1", "soft", "soft"),
    ("bonus: Tone = 1", "loud", "bonus: ... 'soft'"),
    ("bonus: Style = 1", {"tone": "a"}, {"tone": "a"}),
    ("bonus: Style = 1", {"tone": 3}, "bonus.tone: ... string"),
    ("bonus: Style = 1", {"tune": "a"}, "bonus.tune: ... mean tone"),
    ("bonus: set[str] = 1", ["a"], ["a"]),
    ("bonus: {'a': int} = 1", 2, "bonus: ... annotation"),
    ("bonus: Annotated[int, Field(gt='x')] = 1", 2, "bonus: ... annotation"),
    ("_bonus=1", 2, "bonus: ... unknown"),  # each function is looked at anew
]


@pytest.mark.filterwarnings("ignore:.*is not a Python type")  # which pydantic tells the user
def test_the_settings_of_a_reward_are_of_its_types_whatever_those_are(monkeypatch):
    wrong = []
    for parameter, value, expected in REWARD_SETTINGS:
        scope = {}
        exec(f"{CLASSES}\ndef polite_reward(completions, *, {parameter}, **kwargs): ...", scope)
        monkeypatch.setattr(rewards, "polite_reward", scope["polite_reward"], raising=False)
        entry = {"polite_reward": {"weight": 1, "bonus": value}}
        try:
            typed = typed_rewards(entry, lambda key, problem: UserError(f"{key}: {problem}"), {})
            got = typed["polite_reward"]["bonus"]
            right = (type(got), got) == (type(expected), expected)
        except UserError as error:
            got = str(error)
            place, _, word = str(expected).partition(" ... ")
            right = bool(word) and got.startswith(f"rewards.polite_reward.{place}") and word in got
        wrong += [] if right else [(parameter, value, got)]
    assert not wrong


def test_what_is_deleted_from_config_yaml_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.settings.ROOT", tmp_path)
    content = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    wrong = []
    for key in ["rewards", *NEEDED.split()]:
        section, _, name = key.partition(".")
        others = {other: value for other, value in content[section].items() if name not in ("", other)}
        for left in (content | {section: others}, {part: content[part] for part in content if part != section}):
            (tmp_path / "config.yaml").write_text(yaml.safe_dump(left))
            if f"{key}: " not in (message := said([])):
                wrong.append((key, message))
    assert not wrong
