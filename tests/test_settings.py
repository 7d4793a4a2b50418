"""config.yaml and the recipes say what the article says; files and the command line are laid over one another."""

import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from peft import LoraConfig
from trl import GRPOConfig

import rewards
from harness.before.arguments import training_arguments
from harness.errors import UserError
from harness.settings import read_settings

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
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.task_type) == (16, 64, 0, "CAUSAL_LM")
    assert lora.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"}
    assert settings.training["learning_rate"] > 1e-6
    assert settings.training["max_completion_length"] == 256  # the rest is config.yaml's


def test_each_recipe_takes_the_articles_step(monkeypatch):
    for name in ("number_reward", "ends_in_number_reward"):  # of examples/maths_rewards.py, for recipes/maths.yaml
        monkeypatch.setattr(rewards, name, rewards.answer_reward, raising=False)
    for overlay in sorted(set((ROOT / "recipes").glob("*.yaml")) - {ROOT / "recipes/cpu.yaml"}):  # for another model
        settings = read_settings(["--config", str(overlay)])
        config = GRPOConfig(**{**settings.training, "bf16": False, "fp16": False, "use_cpu": True})
        assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 64, overlay.name


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
    assert settings.sections()["training"]["seed"] == 7  # as a number, not as the command line's string


def test_only_a_record_takes_the_place_of_config_yaml(tmp_path):
    """Not a file that happens to have every section: what it leaves out is config.yaml's."""
    sections = "{model: {}, dataset: {}, prompts: {}, rewards: {}, training: {seed: 7}, lora: null, samples: {}}"
    (tmp_path / "all.yaml").write_text(sections)
    settings = read_settings(["--config", str(tmp_path / "all.yaml")])
    assert settings.training["num_generations"] == 8 and settings.training["seed"] == 7
    assert settings.rewards == read_settings([]).rewards
    (tmp_path / "record.yaml").write_text(
        "\n".join(line for line in settings.as_yaml().splitlines() if "beta" not in line)
    )
    record = read_settings(["--config", str(tmp_path / "all.yaml"), "--config", str(tmp_path / "record.yaml")])
    assert "beta" not in record.training and record.training["seed"] == 7


def test_the_effective_settings_read_back_as_the_same(tmp_path):
    settings = read_settings(["--rewards.owner/some-model-v0.1.weight", "0.5", "--training.num_train_epochs", "2"])
    assert settings.rewards["owner/some-model-v0.1"] == {"weight": 0.5}  # a reward model's name may hold dots
    (tmp_path / "again.yaml").write_text(settings.as_yaml())
    assert read_settings(["--config", str(tmp_path / "again.yaml")]).sections() == settings.sections()


def test_trackers_get_the_folders_name_and_a_project_of_ours_unless_set():
    arguments = [
        training_arguments(read_settings(["--config", str(ROOT / "demo/config.yaml"), *more]))[0]
        for more in ([], ["--training.run_name", "mine"])
    ]
    assert [(each.run_name, each.project) for each in arguments] == [("demo", "train-grpo"), ("mine", "train-grpo")]


# What is written on the command line, and what it is: (its key, its text, the value)
COMMAND_LINE = [
    ("training.pad_to_multiple_of", "8", 8),  # a number or a word
    ("training.pad_to_multiple_of", "auto", "auto"),
    ("training.scale_rewards", "false", False),
    ("training.scale_rewards", "none", "none"),
    ("training.run_name", "3", "3"),  # a name may look like a number
    ("training.run_name", "1e-6", "1e-6"),
    ("training.learning_rate", "1e-6", 1e-6),
    ("training.seed", "8.0", 8),
    ("training.bf16", "true", True),
    ("training.generation_kwargs", "{top_k: 3}", {"top_k": 3}),
    ("training.debug", "[underflow_overflow]", ["underflow_overflow"]),
    ("training.optim", "adamw_torch_8bit", "adamw_torch_8bit"),
    ("prompts.system", "Answer: briefly # now", "Answer: briefly # now"),
    ("prompts.system", "yes", "yes"),
    ("prompts.system", "null", None),
    ("samples.questions", "[富士山の高さは?, x]", ["富士山の高さは?", "x"]),
    ("lora.rank_pattern", "{q_proj: 3}", {"q_proj": 3}),
    ("lora.loftq_config", "{loftq_bits: 8}", {"loftq_bits": 8, "loftq_iter": 1}),
    ("model.token", "true", True),
    ("dataset.data_files", "my.csv", "my.csv"),
    ("dataset.data_files.train", "my.csv", {"train": "my.csv"}),
    ("training.generation_kwargs.top_k", "5", {"top_k": 5}),
    ("training.chat_template_kwargs.enable_thinking", "false", {"enable_thinking": False}),
]


def test_a_value_of_the_command_line_is_of_its_keys_type():
    wrong = []
    for name, text, value in COMMAND_LINE:
        section, key, *_ = name.split(".")
        settings = read_settings([f"--{name}", text])
        got = yaml.safe_load(settings.as_yaml())[section][key]
        if (type(got), got) != (type(value), value) or got != settings.sections()[section][key]:
            wrong.append((name, text, got))
    assert not wrong


def test_full_width_text_is_a_value_like_any_other(tmp_path):
    text = "prompts:\n  system: |\n    \u3000日本語で。\n    Answer：短く\nsamples:\n  questions:\n  - Q：高さは?\n"
    (tmp_path / "mine.yaml").write_text(text)
    settings = read_settings(["--config", str(tmp_path / "mine.yaml")])
    assert settings.prompts.system == "\u3000日本語で。\nAnswer：短く\n" and settings.samples.questions == [
        "Q：高さは?"
    ]


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


def test_an_option_that_lacks_its_section_or_is_misspelt_is_told_which_one_is_meant():
    for option, meant in (
        ("--learning_rate", "--training.learning_rate"),
        ("--chek", "--check"),
        ("--resum", "--resume"),
    ):
        with pytest.raises(UserError, match=f"^{option}: unknown option, did you mean {meant}.; fix or remove it$"):
            read_settings([option, "1"])
