"""Every mistake in the settings is one line with its file, line and key, and with what to do; a table a place."""

import pytest
import yaml
from conftest import ROOT, refused

import rewards
from harness.before.arguments import training_arguments
from harness.before.machine import check_machine
from harness.errors import UserError
from harness.keys import NEEDED
from harness.settings import read_settings

DEMO = ["--config", str(ROOT / "demo/config.yaml")]


def said(arguments: list[str]) -> str:
    """What is said of the mistake on a command line, in one line, by what train_grpo.py calls first."""
    try:
        training_arguments(read_settings(arguments))
    except UserError as error:
        return str(error) if "\n" not in str(error) else f"several lines: {error}"
    return "nothing"


# Mistakes in a file: (its text, the line that is named, words of the message)
IN_A_FILE = {
    "a key set twice": ("training:\n  seed: 1\n  beta: 0\n  seed: 2\n", 4, ["training.seed: is set in line 2 already"]),
    "a section set twice": ("lora: null\nlora: null\n", 2, ["lora: is set in line 1 already"]),
    "a training key at the top": ("# mine\nlearning_rate: 1e-6\n", 2, ["did you mean training.learning_rate?"]),
    "lora inside training": ("training:\n  lora: {r: 4}\n", 2, ["training.lora: unknown, did you mean lora?"]),
    "a wrong type": ("training:\n  seed: 1\n  beta: x\n", 3, ["training.beta: should be a valid number, got x; fix"]),
    "a wrong key": ("prompts:\n\n  colum: query\n", 3, ["prompts.colum: unknown", "did you mean prompts.column?"]),
    "a key that is a number": ("training:\n  1: 2\n", 2, ["training.1: unknown"]),
    "a section that has a number for a name": ("# mine\n1: {seed: 2}\n", 2, ["1: unknown"]),
    "a full-width colon": ("# 日本語：\ntraining：\n  seed: 1\n", 2, ["a full-width space or colon"]),
    "a full-width colon in a section": ("training:\n  seed：1\n  beta: 0\n", 2, ["a full-width space or colon"]),
    "a full-width space": ("training:\n\u3000seed: 1\n", 2, ["a full-width space or colon"]),
    "a tab": ("training:\n\tseed: 1\n", 2, ["a tab, which YAML does not take; indent by spaces"]),
    "a section that is a number": ("samples: {held_out: 3}\ntraining: 3\n", 2, ["training: expected a mapping, got 3"]),
    "a reward that is not there": ("rewards:\n  emoji_rewrd: {weight: 1}\n", 2, ["did you mean emoji_reward?"]),
    "a reward without weight": ("rewards:\n  polite_reward: {bonus: 1}\n", 2, ["no such function in rewards.py"]),
    "a number of no reward": ("rewards:\n  emoji_reward: {max: 4}\n", 2, ["rewards.emoji_reward.max: unknown"]),
    "GRPOConfig's own check": ("training:\n  num_generations: 7\n", 2, ["generation_batch_size (64)", "divisible"]),
    # What is no YAML, or not the YAML that was meant
    "a tab behind spaces": ("training:\n  seed: 1\n  \tbeta: 0\n", 3, ["a tab, which YAML does not take"]),
    "deeper than its neighbours": ("training:\n  seed: 1\n    beta: 0\n", 3, ["is indented deeper than line 2"]),
    "deeper by one": ("training:\n  seed: 1\n\n   beta: 0\n", 4, ["is indented deeper than line 2"]),
    "less than its neighbours": ("training:\n    seed: 1\n  beta: 0\n", 3, ["is indented by 2, and line 2 by 4"]),
    "the first section deeper": ("  lora:\n    r: 1\ntraining: {seed: 1}\n", 3, ["less than the first line, by 2"]),
    "not indented": (
        "training:\nseed: 1\n",
        1,
        ["training: expected a mapping, got nothing; indent its keys below it"],
    ),
    "no colon": ("training:\n  seed 1\n  beta: 0\n", 2, ["a colon is missing behind seed"]),
    "no colon in the last line": ("training:\n  beta: 0\n  seed 1\n", 3, ["a colon is missing behind seed"]),
    "no colon in the only line": ("training:\n  seed 1\n", 2, ["a colon is missing behind seed"]),
    "no colon behind a section": ("lora: null\ntraining\n  seed: 1\n", 2, ["a colon is missing behind training"]),
    "an equals sign": ("training:\n  beta: 0\n  seed = 1\n", 3, ["an = where YAML has a colon; write seed: VALUE"]),
    "no space": ("training:\n  seed:1\n  beta: 0\n", 2, ["a space is missing behind the colon of seed"]),
    "no space in the last line": ("training:\n  beta: 0\n  seed:1\n", 3, ["is missing behind the colon of seed"]),
    "no space in the only line": ("training:\n  seed:1\n", 2, ["a space is missing behind the colon of seed"]),
    "no space in braces": ("training: {seed:1}\n", 1, ["a space is missing behind the colon of seed"]),
    "no space behind a section": ("lora: null\ntraining:{seed: 1}\n", 2, ["behind the colon of training"]),
    "a quote": ("training:\n  run_name: 'abc\n  seed: 1\n", 2, ["the quote that opens here is not closed"]),
    "a double quote": ('training:\n  run_name: "abc\n  seed: 1\n', 2, ["the quote that opens here is not closed"]),
    "an apostrophe": ("prompts:\n  system: 'Don't'\n  limit: 3\n", 2, ["a quote closes before the end of the value"]),
    "a Windows path": ('dataset:\n  path: "C:\\data"\n', 2, ["in double quotes a \\ begins a special character"]),
    "a brace": ("lora: {r: 4\ntraining: {seed: 1}\n", 1, ["the { that opens here is not closed"]),
    "a bracket": ("samples:\n  questions: [a, b\n  shown: 3\n", 2, ["the [ that opens here is not closed"]),
    "a comma": ("lora: {r: 4 bias: all}\n", 1, ["the { that opens here is not closed, or a comma is missing"]),
    "a brace too many": ("# mine\nlora: {r: 4}}\n", 2, ["a } that nothing opens"]),
    "a colon in a value": (
        "prompts:\n  system: Answer: briefly\n",
        2,
        ["holds a colon and a space has to be in quotes"],
    ),
    "a value that YAML keeps": ("prompts:\n  column: @query\n", 2, ["a value that begins with @ has to be in quotes"]),
    "a percent sign": ("prompts:\n  column: %\n", 2, ["a value that begins with % has to be in quotes"]),
    "a star": ("dataset:\n  data_files: *.csv\n", 2, ["a value that begins with * has to be in quotes"]),
    "an item deeper": (
        "samples:\n  questions:\n  - a\n   - b\n",
        4,
        ["a - inside the text of line 3; the items of a list"],
    ),
    "an item less deep": ("samples:\n  questions:\n    - a\n  - b\n", 4, ["a - where a key should stand"]),
    "an item beside its key": ("samples:\n  questions: - a\n", 2, ["in [ ] or in the lines below"]),
    "a text not indented": (
        "prompts:\n  system: |\n  briefly\n  limit: 3\n",
        3,
        ["text below a | or > has to be indented"],
    ),
    "two documents": ("lora: null\n---\ntraining: {seed: 1}\n", 2, ["--- begins a second document"]),
    "a list as a key": ("training:\n  ? [a, b]\n  : 1\n", 2, ["a key has to be a word"]),
    "a merge of git": ("training:\n<<<<<<< HEAD\n  seed: 1\n=======\n", 2, ["a mark of git"]),
}


def test_numbers_are_what_stands_there(tmp_path):
    """In YAML 1.1 010 is eight, 1:30 is ninety and 1e-6 a text."""
    file = tmp_path / "mine.yaml"
    file.write_text("training: {seed: 10, learning_rate: 1e-6, beta: .5, adam_epsilon: 1.5e-8, run_name: '010'}\n")
    training = read_settings([*DEMO, "--config", str(file)]).training
    found = [training[key] for key in ("seed", "learning_rate", "beta", "adam_epsilon", "run_name")]
    assert found == [10, 1e-6, 0.5, 1.5e-8, "010"]
    file.write_text("training: {seed: 010}\n")
    assert read_settings([*DEMO, "--config", str(file)]).training["seed"] == 10
    for value in ("1:30", "0x10"):
        file.write_text(f"training: {{seed: {value}}}\n")
        assert f"training.seed: should be a valid integer, got {value}" in said([*DEMO, "--config", str(file)])
    file.write_text("prompts: &t\n  rename: *t\n")
    assert "holds itself" in said([*DEMO, "--config", str(file)])


def test_mistakes_in_a_file_name_the_line(tmp_path):
    wrong, file = [], tmp_path / "mine.yaml"
    for name, (text, line, words) in IN_A_FILE.items():
        file.write_text(text)
        message = said([*DEMO, "--config", str(file)])
        if not (message.startswith(f"{file}:{line}: ") and all(word in message for word in words)):
            wrong.append((name, message))
    assert not wrong


TRAINING = [
    ("learn", "1", ["training.learn: unknown", "learning_rate"]),
    ("learnin_rate", "1", ["training.learnin_rate: unknown, did you mean training.learning_rate?; fix or remove it"]),
    ("num_generations", "8.5", ["training.num_generations: should be a valid integer, got 8.5; fix the value"]),
    ("num_generations", "[8]", ["num_generations: should be a valid integer"]),
    ("num_generations", "null", ["training.num_generations: has no value; write one, or remove the line"]),
    ("max_steps", "null", ["training.max_steps: has no value"]),
    ("max_completion_length", "null", ["training.max_completion_length: has no value"]),
    ("output_dir", "null", ["training.output_dir: is missing"]),
    ("top_k", "-1", ["training.top_k: should be greater than or equal to 0, got -1"]),
    ("top_p", "0", ["training.top_p: should be greater than 0", "got 0"]),
    ("min_p", "2", ["training.min_p: should be less than or equal to 1", "got 2"]),
    ("repetition_penalty", "0", ["training.repetition_penalty: should be greater than 0, got 0"]),
    ("num_generations", "1", ["training.num_generations: GRPO requires at least 2 generations"]),
    ("learning_rate", "fast", ["training.learning_rate: should be a valid number, got fast"]),
    ("learning_rate", "-1", ["training.learning_rate: should be greater than or equal to 0, got -1"]),
    ("beta", "-0.1", ["training.beta: should be greater than or equal to 0"]),
    ("temperature", "0", ["training.temperature: should be greater than 0, got 0"]),
    ("seed", "true", ["training.seed: should be a valid integer, got True"]),
    ("optim", "admw_torch", ["training.optim: unknown word admw_torch, did you mean adamw_torch?; fix the value"]),
    ("seed", "-1", ["training.seed: should be greater than or equal to 0"]),
    ("learning_rate", "inf", ["training.learning_rate: should be a finite number, got inf"]),
    ("weight_decay", "nan", ["training.weight_decay: should be a finite number, got nan"]),
    ("optim", "nonsense", ["training.optim: should be one of adamw_torch, adamw_torch_fused, "]),
    ("steps_per_generation", "0", ["training.steps_per_generation: should be greater than 0"]),
    ("max_completion_length", "0", ["training.max_completion_length: should be greater than 0"]),
    ("loss_type", "drgrpo", ["training.loss_type: unknown word drgrpo, did you mean dr_grpo?; fix the value"]),
    ("scale_rewards", "grup", ["training.scale_rewards: unknown word grup, did you mean group?; fix the value"]),
    ("vllm_mode", "colocat", ["training.vllm_mode: unknown word colocat, did you mean colocate?; fix"]),
    (
        "save_strategy",
        "sometimes",
        ["training.save_strategy: should be one of no, steps, epoch, best, got sometimes; fix"],
    ),
    ("output_dir", "", ["training.output_dir: should have at least 1 character, got nothing"]),
    ("max_prompt_length", "256", ["training.max_prompt_length: TRL has dropped it; set prompts.max_length"]),
    ("remove_unused_columns", "true", ["training.remove_unused_columns: leave it out"]),
    ("resume_from_checkpoint", "x", ["training.resume_from_checkpoint: run the same command with --resume"]),
]


def test_mistakes_in_training():
    messages = [(row, said([*DEMO, f"--training.{row[0]}={row[1]}"])) for row in TRAINING]
    assert not [(row, message) for row, message in messages if not all(word in message for word in row[2])]


OTHER_SECTIONS = [
    (["--train.seed", "1"], ["train: unknown", "did you mean training?"]),
    (["--model.dtype", "bf16"], ["model.dtype: unknown word bf16, did you mean bfloat16?"]),
    (["--model.torch_dtype", "auto"], ["model.torch_dtype: unknown, did you mean model.dtype?"]),
    (["--prompts.limit", "0"], ["prompts.limit: should be greater than 0, got 0"]),
    (["--samples.held_out=-1"], ["samples.held_out: should be greater than or equal to 0"]),
    (["--lora.r", "many"], ["lora.r: should be a valid integer", "got many"]),
    (["--lora.bias", "some"], ["lora.bias: should be one of none, all, lora_only, got some"]),
    (["--rewards.emoji_rewrd.weight", "1"], ["rewards.emoji_rewrd: ", "did you mean emoji_reward?", "length_reward"]),
    (["--rewards.length_reward.goal", "9"], ["rewards.length_reward.goal: unknown"]),
    (["--rewards.length_reward.weight", ".inf"], ["rewards.length_reward.weight: should be a finite number, got inf"]),
    (["--rewards.length_reward", "3"], ["rewards.length_reward: expected a mapping with its weight, got '3'"]),
    (["--rewards.owner/model-v0.1.weight", "x"], ["rewards.owner/model-v0.1.weight: should be a valid number, got x"]),
    (
        ["--rewards.a/judge.weight", "1", "--rewards.b/judge.weight", "1"],
        ["rewards.a/judge: would be logged as judge, and so would b/judge"],
    ),
    (["--rewards", "null"], ["rewards: expected a mapping"]),
    (["--prompts.rename", "{1: question}"], ["prompts.rename: its key 1 should be text"]),
    (["--samples.held_out", "null"], ["samples.held_out: has no value"]),
    (["--lora", "{r: null}"], ["lora.r: has no value"]),
    (["--rewards.emoji_reward.weight", "null"], ["rewards.emoji_reward: expected a mapping with its weight"]),
    (["--rewards.emoji_reward.max_emoji", "null"], ["rewards.emoji_reward.max_emoji: has no value"]),
    (["--training.auto_find_batch_size", "true"], ["training.auto_find_batch_size: "]),
    (["--lora", "{}"], ["lora: has no keys", "lora: null"]),
    ([f"--rewards.{name}_reward.weight=0" for name in ("emoji", "length", "answer")], ["rewards: none has a weight"]),
    (["--config", "nowhere.yaml"], ["nowhere.yaml: No such file", "--config"]),
    (["--config", "LICENSE"], ["LICENSE:92: not YAML"]),
    (["--config", "demo/questions.jsonl"], ["demo/questions.jsonl:2: not YAML"]),
    (["--training.loss_scale"], ["training.loss_scale: has no value"]),
    (["surprise"], ["surprise: not an option"]),
]  # fmt: skip


def test_mistakes_in_other_sections_and_on_the_command_line(monkeypatch):
    monkeypatch.chdir(ROOT)
    messages = [(row, said([*DEMO, *row[0]])) for row in OTHER_SECTIONS]
    right = [all(word in said for word in words) and said.startswith(words[0]) for (_, words), said in messages]
    assert not [message for message, good in zip(messages, right, strict=True) if not good]


# Values that do not go together, in a file laid over others and, if any, on the command line; the key that is named
LATEST = [
    ("training: {per_device_train_batch_size: 10}", [], "mine:1: training.per_device_train_batch_size"),
    (
        "training: {per_device_train_batch_size: 10}",
        ["--training.seed=3"],
        "mine:1: training.per_device_train_batch_size",
    ),
    ("training: {per_device_train_batch_size: 10}", ["--training.num_generations=4"], "training.num_generations"),
    ("training: {num_generations: 7}", [], "mine:1: training.num_generations"),
    (
        "training: {num_generations: 12}",
        ["--training.per_device_train_batch_size=10"],
        "training.per_device_train_batch_",
    ),
    (
        "training: {steps_per_generation: 3, per_device_train_batch_size: 4}",
        [],
        "mine:1: training.per_device_train_batch_size",
    ),
    ("training: {generation_batch_size: 65}", [], "mine:1: training.generation_batch_size"),
    ("training: {generation_batch_size: 64}", ["--training.steps_per_generation=2"], "training.steps_per_generation"),
    (
        "training: {eval_strategy: steps, per_device_eval_batch_size: 8}",
        ["--training.num_generations=16"],
        "training.num_g",
    ),
    (
        "training: {eval_strategy: steps}",
        ["--training.per_device_eval_batch_size=3"],
        "training.per_device_eval_batch_size",
    ),
    ("training: {load_best_model_at_end: true}", ["--training.save_strategy=epoch"], "training.save_strategy"),
    ("training: {lr_scheduler_type: reduce_lr_on_plateau}", [], "mine:1: training.lr_scheduler_type"),
    ("training: {fp16: true}", ["--training.bf16=true"], "training.bf16: cannot be true together with fp16"),
    ("training: {bf16: true}", ["--training.fp16=true"], "training.fp16: cannot be true together with bf16"),
    ("model: {quantization_config: {load_in_4bit: true}}", ["--lora=null"], "lora: quantized weights are not trained"),
    ("lora: {target_modules: x.*}", ["--lora.layers_to_transform=1"], "lora.layers_to_transform"),
]


def test_of_values_that_do_not_go_together_the_one_set_last_is_named(tmp_path):
    wrong, file = [], tmp_path / "mine.yaml"
    for text, arguments, expected in LATEST:
        file.write_text(text)
        try:
            check_machine(settings := read_settings([*DEMO, "--config", str(file), *arguments]))
            training_arguments(settings)
            message = "nothing"
        except UserError as error:
            message = str(error)
        if not message.replace(str(file), "mine").startswith(expected):
            wrong.append((text, arguments, message))
    assert wrong == []


# The same of values that only the data and the model tell not to go together: a file, the key that is named
LATEST_WITH_DATA = [
    ("prompts: {limit: 4}", "mine:1: prompts.limit: too little is left of the dataset: 4 read"),
    (
        "training: {per_device_train_batch_size: 2048}",
        "mine:1: training.per_device_train_batch_size: too little is left",
    ),
    ("samples: {held_out: 0}", "mine:1: samples.held_out: there is nothing to evaluate on"),
    ("training: {eval_strategy: 'no'}", "mine:1: training.eval_strategy: is no, but training.eval_on_start is set"),
    (
        "rewards: {emoji_reward: null}",
        "mine:1: rewards.emoji_reward: training.metric_for_best_model: 'rewards/emoji_reward/mean' is no ",
    ),
    ("training: {max_completion_length: 510}", "mine:1: training.max_completion_length: "),
]


def test_of_values_that_do_not_fit_the_data_or_the_model_the_one_set_last_is_named(tiny, tmp_path):
    file, first, wrong = tmp_path / "mine.yaml", tmp_path / "first.yaml", []
    more = {"eval_strategy": "steps", "eval_on_start": True, "metric_for_best_model": "rewards/emoji_reward/mean"}
    keys = dict(zip([key[2:] for key in tiny[2::2]], tiny[3::2], strict=True))  # of a file, as mine is over it
    sections = {"samples": {"held_out": 8}, "training": more}
    for key, value in keys.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = yaml.safe_load(value)
    first.write_text(yaml.safe_dump(sections))
    for text, expected in LATEST_WITH_DATA:
        file.write_text(text)
        message = refused([*tiny[:2], "--config", str(first), "--config", str(file), "--check"])
        wrong += [] if message.replace(str(file), "mine").startswith(expected) else [(text, message)]
    assert wrong == []


def test_what_stands_beside_the_value_that_is_named_is_named_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("training: {num_generations: 7}")
    message = said([*DEMO, "--config", str(tmp_path / "mine.yaml")])
    assert f"beside it stand per_device_train_batch_size: 64 ({ROOT}/demo/config.yaml:20)" in message


def user_reward(text, monkeypatch):
    scope = {}
    exec(text, scope)
    monkeypatch.setattr(rewards, "polite_reward", scope["polite_reward"], raising=False)


def test_a_function_that_takes_no_completions_is_no_reward(monkeypatch):
    user_reward("def polite_reward(completion, **kwargs): ...", monkeypatch)
    message = said([*DEMO, "--rewards.polite_reward.weight", "1"])
    assert message.startswith("rewards.polite_reward: has no parameter `completions`") and "rewards.py" in message


# The annotation of a reward's setting, its value on the command line, what the reward gets or words of the message
REWARD_SETTINGS = [
    ("bonus=1", "2", 2),
    ("bonus=1", "much", "much"),
    ("bonus: int = 1", "2", 2),
    ("bonus: int = 1", "much", ["bonus: should be a valid integer, got much"]),
    ("bonus: float = 1", "2", 2.0),
    ("bonus: str = ''", "2", "2"),
    ("bonus: (1, 2) = 1", "2", 2),  # no type
    ("bonus: 'nowhere.Kind' = 1", "2", 2),
    ("_bonus=1", "2", ["bonus: unknown"]),  # each function is looked at anew
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*is not a Python type")  # which pydantic tells the user
def test_the_settings_of_a_reward_are_of_its_types_whatever_those_are(monkeypatch):
    wrong = []
    for parameter, text, expected in REWARD_SETTINGS:
        user_reward(f"def polite_reward(completions, *, {parameter}, **kwargs): ...", monkeypatch)
        arguments = [*DEMO, "--rewards.polite_reward.weight", "1", "--rewards.polite_reward.bonus", text]
        try:
            got = read_settings(arguments).rewards["polite_reward"]["bonus"]
        except UserError as error:
            got = expected if isinstance(expected, list) and expected[0] in str(error) else str(error)
        if (type(got), got) != (type(expected), expected):
            wrong.append((parameter, text, got))
    assert not wrong


# A key of each section, and each level above the keys
KEYS = "model model.dtype dataset dataset.split prompts prompts.column samples samples.shown training training.beta "
KEYS += "lora lora.r rewards rewards.length_reward rewards.length_reward.alpha"


def nested(path: list[str], value) -> str:
    for key in reversed(path):
        value = {key: value}
    return yaml.safe_dump(value)


def test_a_key_that_is_misspelt_or_of_the_wrong_type_is_named(tmp_path):
    base = ["--config", str(ROOT / "recipes/lora.yaml"), *DEMO]
    wrong, overlay = [], tmp_path / "mistake.yaml"
    for key in KEYS.split():
        path = key.split(".")
        overlay.write_text(nested([*path[:-1], path[-1] + "s"], {"weight": 1}))
        message = said([*base, "--config", str(overlay)])
        place = message.startswith((f"{overlay}:{len(path)}: {key}s", f"{key}s"))
        if not (place and "did you mean " in message and path[-1] in message.split("did you mean ")[1]):
            wrong.append((key, "misspelt", message))
        overlay.write_text(nested(path, 5 if len(path) == 1 or key.endswith("_reward") else {"wrong": "type"}))
        message = said([*base, "--config", str(overlay)])
        if not message.startswith(f"{overlay}:{len(path)}: {key}: "):
            wrong.append((key, "of the wrong type", message))
    assert not wrong


def test_what_is_deleted_from_config_yaml_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.settings.ROOT", tmp_path)
    wrong = []
    for section, key in (name.split(".") for name in NEEDED.split()):
        for whole in (False, True):
            content = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
            content.pop(section) if whole else content[section].pop(key)
            (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
            if f"{section}.{key}: is missing; put it back into config.yaml" not in (message := said([])):
                wrong.append((section, key, whole, message))
    assert not wrong


def test_without_rewards_there_is_nothing_to_learn(tmp_path, monkeypatch):
    content = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content | {"rewards": {}}))
    monkeypatch.setattr("harness.settings.ROOT", tmp_path)
    assert said([]).startswith("rewards: none has a weight other than 0")
    del content["rewards"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert said([]).startswith("rewards: none has a weight other than 0")


def test_yaml_is_data(tmp_path):
    (tmp_path / "bomb.yaml").write_text(f"training: !!python/object/apply:os.mkdir ['{tmp_path / 'executed'}']\n")
    assert "bomb.yaml:1: not YAML" in said(["--config", str(tmp_path / "bomb.yaml"), "--check"])
    assert not (tmp_path / "executed").exists()
