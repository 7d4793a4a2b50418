"""config.yaml and the recipes say what the article says; every mistake is one line with its file, line and key."""

import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, refused
from peft import LoraConfig
from trl import GRPOConfig

import rewards
from harness.keys import NEEDED
from harness.settings import read_settings, training_arguments

ARTICLE = {
    "num_generations": 8,
    "temperature": 0.9,
    "max_completion_length": 256,
    "use_vllm": False,
    "learning_rate": 1e-6,
    "beta": 0.04,
    "loss_type": "grpo",
    "num_train_epochs": 1,
    "num_iterations": 1,
    "scale_rewards": "group",
    "generation_batch_size": 64,
    "steps_per_generation": 4,
}


def test_config_yaml_is_the_article():
    settings = read_settings([])
    assert settings.model == {
        "pretrained_model_name_or_path": "SakanaAI/TinySwallow-1.5B-Instruct",
        "dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
    }
    assert settings.dataset["path"] == "cl-nagoya/auto-wiki-qa"
    assert settings.prompts.column == "query" and settings.prompts.max_length == 256
    assert settings.rewards == {
        "emoji_reward": {"weight": 1, "max_emoji": 4},
        "length_reward": {"weight": 1, "target_length": 30, "alpha": 0.15},
        "answer_reward": {"weight": 0},
    }
    assert settings.lora is None
    assert settings.training["bf16"] is True
    config = GRPOConfig(**{**settings.training, "bf16": False, "use_cpu": True})  # as no GPU is here to accept bf16
    assert {name: getattr(config, name) for name in ARTICLE} == ARTICLE
    completions_per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    assert completions_per_step == 64 and 10_000 * config.num_generations / completions_per_step == 1250
    assert len((ROOT / "config.yaml").read_text().splitlines()) <= 60


def test_lora_recipe_is_the_articles_with_a_learning_rate_that_learns():
    settings = read_settings(["--config", str(ROOT / "recipes/lora.yaml")])
    lora = LoraConfig(**settings.lora)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.task_type) == (16, 64, 0.05, "CAUSAL_LM")
    assert lora.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"}
    assert settings.training["learning_rate"] > 1e-6
    assert settings.training["max_completion_length"] == 256  # the rest is config.yaml's


@pytest.mark.parametrize("overlay", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_parse(overlay):
    settings = read_settings(["--config", str(overlay)])
    config = GRPOConfig(**{**settings.training, "bf16": False, "fp16": False, "use_cpu": True})
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 64  # the article's step


def test_overlays_merge_value_by_value_and_the_command_line_comes_last(tmp_path):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(
        "rewards:\n  emoji_reward: {weight: 2}\n  answer_reward: null\ntraining: {learning_rate: 2e-6}\n"
    )
    settings = read_settings(["--config", str(overlay), "--training.seed", "7", "--rewards.length_reward.alpha=0.3"])
    assert settings.rewards == {
        "emoji_reward": {"weight": 2, "max_emoji": 4},
        "length_reward": {"weight": 1, "target_length": 30, "alpha": 0.3},
    }
    assert settings.training["learning_rate"] == 2e-6 and settings.training["seed"] == 7
    assert settings.given["training"]["seed"] == 7  # as a number, not as the command line's string


def test_a_file_with_every_section_stands_alone(tmp_path):
    complete = (ROOT / "config.yaml").read_text().splitlines(keepends=True)
    (tmp_path / "all.yaml").write_text("".join(line for line in complete if "length_reward" not in line))
    assert "length_reward" not in read_settings(["--config", str(tmp_path / "all.yaml")]).rewards


def test_the_effective_settings_read_back_as_the_same(tmp_path):
    settings = read_settings(["--rewards.owner/some-model-v0.1.weight", "0.5", "--training.num_train_epochs", "2"])
    assert settings.rewards["owner/some-model-v0.1"] == {"weight": 0.5}  # a reward model's name may hold dots
    (tmp_path / "again.yaml").write_text(settings.as_yaml())
    assert read_settings(["--config", str(tmp_path / "again.yaml")]).given == settings.given


def test_trackers_get_the_folders_name_and_a_project_of_ours_unless_set():
    demo = ["--config", str(ROOT / "demo/config.yaml")]
    arguments = [training_arguments(read_settings([*demo, *more]))[0] for more in ([], ["--training.run_name", "mine"])]
    assert [(each.run_name, each.project) for each in arguments] == [("demo", "train-grpo"), ("mine", "train-grpo")]


# Mistakes in a file: (its text, the line that is named, words of the message)
IN_A_FILE = {
    "a key set twice": ("training:\n  seed: 1\n  beta: 0\n  seed: 2\n", 4, ["training.seed: is set in line 2 already"]),
    "a section set twice": ("lora: null\nlora: null\n", 2, ["lora: is set in line 1 already"]),
    "a training key at the top": ("# mine\nlearning_rate: 1e-6\n", 2, ["did you mean training.learning_rate?"]),
    "lora inside training": ("training:\n  lora: {r: 4}\n", 2, ["training.lora: unknown, did you mean lora?"]),
    "a wrong type": (
        "training:\n  seed: 1\n  num_generations: 8.5\n",
        3,
        ["training.num_generations: should be a whole number"],
    ),
    "a wrong key": ("prompts:\n\n  colum: query\n", 3, ["prompts.colum: unknown", "did you mean prompts.column?"]),
    "a key that is a number": ("training:\n  1: 2\n", 2, ["training.1: unknown"]),
    "a section that has a number for a name": ("# mine\n1: {seed: 2}\n", 2, ["1: unknown"]),
    "a full-width colon": ("# 日本語：\ntraining：\n  seed: 1\n", 2, ["a full-width space or colon"]),
    "a full-width colon in a section": ("training:\n  seed：1\n  beta: 0\n", 2, ["a full-width space or colon"]),
    "a full-width space": ("training:\n\u3000seed: 1\n", 2, ["a full-width space or colon"]),
    "a tab": ("training:\n\tseed: 1\n", 2, ["a tab, which YAML does not take; indent by spaces"]),
    "a bracket that stays open": (
        "lora: {r: 4\ntraining: {seed: 1}\n",
        2,
        ["not YAML: did not find expected ',' or '}'"],
    ),
    "a section that is a number": ("samples: {held_out: 3}\ntraining: 3\n", 2, ["training: expected a mapping, got 3"]),
    "a reward that is not there": ("rewards:\n  emoji_rewrd: {weight: 1}\n", 2, ["did you mean emoji_reward?"]),
    "a reward without weight": ("rewards:\n  polite_reward: {bonus: 1}\n", 2, ["no such function in rewards.py"]),
    "a number of no reward": ("rewards:\n  emoji_reward: {max: 4}\n", 2, ["rewards.emoji_reward.max: unknown"]),
    "GRPOConfig's own check": ("training:\n  num_generations: 7\n", 2, ["generation_batch_size (64)", "divisible"]),
}


@pytest.mark.parametrize(("text", "line", "words"), IN_A_FILE.values(), ids=IN_A_FILE)
def test_mistakes_in_a_file_name_the_line(text, line, words, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    message = refused(["--config", str(ROOT / "demo/config.yaml"), "--config", str(tmp_path / "mine.yaml")])
    assert message.startswith(f"{tmp_path}/mine.yaml:{line}: ") and all(word in message for word in words), message


TRAINING = [
    ("learn", "1", ["training.learn: unknown", "learning_rate"]),
    ("learnin_rate", "1", ["training.learnin_rate: unknown, did you mean training.learning_rate?; fix or remove it"]),
    (
        "num_generations",
        "8.5",
        ["training.num_generations: should be a whole number, got 8.5"],
    ),
    ("num_generations", "[8]", ["num_generations: should be a whole number"]),
    ("num_generations", "null", ["training.num_generations: has no value; write one, or remove the line"]),
    ("max_steps", "null", ["training.max_steps: has no value"]),
    ("max_completion_length", "null", ["training.max_completion_length: has no value"]),
    ("output_dir", "null", ["training.output_dir: is missing"]),
    ("top_k", "-1", ["training.top_k: should be at least 0, got -1"]),
    ("top_p", "0", ["training.top_p: should be greater than 0", "got 0"]),
    ("min_p", "2", ["training.min_p: should be at most 1", "got 2"]),
    ("repetition_penalty", "0", ["training.repetition_penalty: should be greater than 0, got 0"]),
    ("num_generations", "1", ["training: GRPO requires at least 2 generations"]),
    ("learning_rate", "fast", ["training.learning_rate: should be a number, got fast"]),
    ("learning_rate", "-1", ["training.learning_rate: should be at least 0, got -1"]),
    ("beta", "-0.1", ["training.beta: should be at least 0"]),
    ("temperature", "0", ["training.temperature: should be greater than 0, got 0"]),
    ("seed", "true", ["training.seed: should be a whole number, got True"]),
    ("optim", "admw_torch", ["training.optim: unknown word admw_torch, did you mean adamw_torch?; fix the value"]),
    ("seed", "-1", ["training.seed: should be at least 0"]),
    ("learning_rate", "inf", ["training.learning_rate: should be a finite number, got inf"]),
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
    ("output_dir", "", ["training.output_dir: should be text that is not empty, got nothing"]),
    ("max_prompt_length", "256", ["training.max_prompt_length: TRL has dropped it; set prompts.max_length"]),
    ("remove_unused_columns", "true", ["training.remove_unused_columns: leave it out"]),
    ("resume_from_checkpoint", "x", ["training.resume_from_checkpoint: run the same command with --resume"]),
]


@pytest.mark.parametrize(("key", "value", "words"), TRAINING, ids=lambda value: str(value)[:30])
def test_mistakes_in_training(key, value, words):
    message = refused(["--config", str(ROOT / "demo/config.yaml"), f"--training.{key}={value}"])
    assert all(word in message for word in words), message


OTHER_SECTIONS = [
    (["--train.seed", "1"], ["train: unknown", "did you mean training?"]),
    (["--model.dtype", "bf16"], ["model.dtype: unknown word bf16, did you mean bfloat16?"]),
    (["--model.torch_dtype", "auto"], ["model.torch_dtype: unknown, did you mean model.dtype?"]),
    (["--prompts.limit", "0"], ["prompts.limit: should be greater than 0, got 0"]),
    (["--samples.held_out=-1"], ["samples.held_out: should be at least 0"]),
    (["--lora.r", "many"], ["lora.r: should be a whole number", "got many"]),
    (["--lora.bias", "some"], ["lora.bias: should be one of none, all, lora_only, got some"]),
    (["--rewards.emoji_rewrd.weight", "1"], ["rewards.emoji_rewrd: ", "did you mean emoji_reward?", "length_reward"]),
    (["--rewards.length_reward.goal", "9"], ["rewards.length_reward.goal: unknown"]),
    (["--rewards.length_reward.weight", ".inf"], ["rewards.length_reward.weight: should be a finite number, got inf"]),
    (["--rewards.length_reward", "3"], ["rewards.length_reward: expected a mapping with its weight, got '3'"]),
    (["--rewards.owner/model-v0.1.weight", "x"], ["rewards.owner/model-v0.1.weight: should be a number, got x"]),
    (["--rewards", "null"], ["rewards: expected a mapping"]),
    (["--samples.held_out", "null"], ["samples.held_out: has no value"]),
    (["--lora", "{r: null}"], ["lora.r: has no value"]),
    (["--rewards.emoji_reward.weight", "null"], ["rewards.emoji_reward: expected a mapping with its weight"]),
    (["--rewards.emoji_reward.max_emoji", "null"], ["rewards.emoji_reward.max_emoji: has no value"]),
    (["--training.auto_find_batch_size", "true"], ["training.auto_find_batch_size: "]),
    (["--lora", "{}"], ["lora: has no keys", "lora: null"]),
    ([f"--rewards.{name}_reward.weight=0" for name in ("emoji", "length", "answer")], ["rewards: none has a weight"]),
    (["--config", "nowhere.yaml"], ["nowhere.yaml: No such file", "--config"]),
    (["--config", "LICENSE"], ["LICENSE:93: not YAML"]),
    (["--config", "demo/questions.jsonl"], ["demo/questions.jsonl:2: not YAML"]),
    (["--training.loss_scale"], ["training.loss_scale: has no value"]),
    (["surprise"], ["surprise: not an option"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), OTHER_SECTIONS, ids=lambda value: " ".join(value)[:40])
def test_mistakes_in_other_sections_and_on_the_command_line(arguments, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    message = refused(["--config", "demo/config.yaml", *arguments])
    assert message.startswith(words[0]) and all(word in message for word in words), message


# rewards.py as a user might write it: (the function, words of the message)
REWARD_FUNCTIONS = {
    "completion": ("def polite_reward(completion, **kwargs): ...", ["has no parameter `completions`", "rewards.py"]),
    "no **kwargs": ("def polite_reward(completions, bonus=1): ...", ["takes no **kwargs", "rewards.py"]),
}


@pytest.mark.parametrize(("text", "words"), REWARD_FUNCTIONS.values(), ids=REWARD_FUNCTIONS)
def test_a_reward_that_trl_could_not_call(text, words, monkeypatch):
    scope = {}
    exec(text, scope)
    monkeypatch.setattr(rewards, "polite_reward", scope["polite_reward"], raising=False)
    message = refused(["--rewards.polite_reward.weight", "1"])
    assert message.startswith("rewards.polite_reward: ") and all(word in message for word in words), message


def every_key() -> list[tuple[str, ...]]:
    paths = []
    for file in [ROOT / "config.yaml", ROOT / "demo/config.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))]:
        for section, values in yaml.safe_load(file.read_text()).items():
            paths += [(section,), *((section, key) for key in values or ())]
            if section == "rewards":
                paths += [(section, name, key) for name, entry in values.items() for key in entry]
    return list(dict.fromkeys(paths))


def nested(path: tuple[str, ...], value) -> dict:
    for key in reversed(path):
        value = {key: value}
    return value


@pytest.mark.parametrize("path", every_key(), ids=".".join)
def test_every_key_misspelt_or_of_the_wrong_type_is_named(path, tmp_path):
    base = ["--config", str(ROOT / "recipes/lora.yaml"), "--config", str(ROOT / "demo/config.yaml")]
    overlay = tmp_path / "mistake.yaml"
    *parents, key = path

    overlay.write_text(yaml.safe_dump(nested((*parents, key + "s"), {"weight": 1})))
    message = refused([*base, "--config", str(overlay)]).removeprefix(f"{overlay}:{len(path)}: ")
    assert message.startswith(".".join(path) + "s") and "did you mean " in message and key in message

    wrong = 5 if len(path) == 1 or path[-1].endswith("_reward") else {"wrong": "type"}
    if path not in (("dataset", "data_files"), ("prompts", "rename")):  # which may be mappings
        overlay.write_text(yaml.safe_dump(nested(path, wrong)))
        message = refused([*base, "--config", str(overlay)])
        assert message.startswith(f"{overlay}:{len(path)}: {'.'.join(path)}: "), message


def test_full_width_text_is_a_value_like_any_other(tmp_path):
    text = "prompts:\n  system: |\n    \u3000日本語で。\n    Answer：短く\nsamples:\n  questions:\n  - Q：高さは?\n"
    (tmp_path / "mine.yaml").write_text(text)
    settings = read_settings(["--config", str(tmp_path / "mine.yaml")])
    assert settings.prompts.system == "\u3000日本語で。\nAnswer：短く\n" and settings.samples.questions == [
        "Q：高さは?"
    ]


@pytest.mark.parametrize("key", NEEDED.split())
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_deleted_from_config_yaml_is_named(key, whole, tmp_path, monkeypatch):
    content = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    section, _, name = key.partition(".")
    content.pop(section) if whole else content[section].pop(name)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr("harness.settings.ROOT", tmp_path)
    assert f"{key}: is missing; put it back into config.yaml" in refused([])


def test_without_rewards_there_is_nothing_to_learn(tmp_path, monkeypatch):
    content = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content | {"rewards": {}}))
    monkeypatch.setattr("harness.settings.ROOT", tmp_path)
    assert refused([]).startswith("rewards: none has a weight other than 0")
    del content["rewards"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert refused([]).startswith("rewards: none has a weight other than 0")


def test_yaml_is_data(tmp_path):
    (tmp_path / "bomb.yaml").write_text(f"training: !!python/object/apply:os.mkdir ['{tmp_path / 'executed'}']\n")
    assert "bomb.yaml:1: not YAML" in refused(["--config", str(tmp_path / "bomb.yaml"), "--check"])
    assert not (tmp_path / "executed").exists()


def test_help_fits_on_one_screen_and_the_versions_are_printed():
    command = [sys.executable, "train_grpo.py"]
    screen = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(screen.splitlines()) <= 30 and "--print_config" in screen
    versions = subprocess.run([*command, "--version"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "trl 1." in versions and "torch 2." in versions


def test_a_folder_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    settings = read_settings(["--training.output_dir", "~/runs/a", "--model.pretrained_model_name_or_path", "~/model"])
    assert settings.training["output_dir"] == "/home/me/runs/a"
    assert settings.model["pretrained_model_name_or_path"] == "/home/me/model"
