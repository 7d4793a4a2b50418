"""config.yaml and the recipes say what the article says; files and the command line are laid over one another."""

import pytest
import yaml
from conftest import ROOT
from peft import LoraConfig
from trl import GRPOConfig

from harness.before.arguments import training_arguments
from harness.settings import read_settings

ARTICLE = {
    "num_generations": 8, "temperature": 0.9, "max_completion_length": 256, "use_vllm": False, "learning_rate": 1e-6,
    "beta": 0.04, "loss_type": "grpo", "num_train_epochs": 1, "num_iterations": 1, "scale_rewards": "group",
    "generation_batch_size": 64, "steps_per_generation": 4, "optim": "adamw_torch_fused", "cache_implementation": None,
}  # fmt: skip


def test_article_yaml_is_the_article():
    settings = read_settings(["--config", str(ROOT / "recipes/article.yaml")])
    name = "SakanaAI/TinySwallow-1.5B-Instruct"
    model = {"pretrained_model_name_or_path": name, "dtype": "bfloat16", "attn_implementation": "flash_attention_2"}
    assert settings.model == model and settings.dataset["path"] == "cl-nagoya/auto-wiki-qa" and settings.lora is None
    assert settings.prompts.column == "query" and settings.prompts.max_length == 256
    assert settings.rewards == {
        "emoji_reward": {"weight": 1, "max_emoji": 4},
        "length_reward": {"weight": 1, "target_length": 30, "alpha": 0.15},
        "answer_reward": {"weight": 0},
    }
    assert settings.training["bf16"] is True
    config = GRPOConfig(**{**settings.training, "bf16": False, "use_cpu": True})  # as no GPU is here to accept bf16
    assert {name: getattr(config, name) for name in ARTICLE} == ARTICLE
    assert len((ROOT / "config.yaml").read_text().splitlines()) <= 60


def test_lora_yaml_learns():
    settings = read_settings(["--config", str(ROOT / "recipes/lora.yaml")])
    lora = LoraConfig(**settings.lora)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.task_type) == (16, 64, 0, "CAUSAL_LM")
    assert lora.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"}
    assert settings.training["learning_rate"] > 1e-6
    for more, name in (([], "demo"), (["--training.run_name", "mine"], "mine")):  # for trackers
        arguments, _ = training_arguments(read_settings(["--config", str(ROOT / "demo/config.yaml"), *more]))
        assert (arguments.run_name, arguments.project) == (name, "train-grpo")


def test_overlays_merge_value_by_value_and_the_command_line_comes_last(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    overlay = tmp_path / "mine.yaml"
    text = "rewards: {emoji_reward: {weight: 2}, answer_reward: null}\ntraining: {learning_rate: 2e-6, "
    overlay.write_text(f"{text}run_name: 2026-12-01}}\nprompts:\n  system: |\n    \u3000日本語で。\n    Answer：短く\n")
    more = ["--training.seed", "7", "--rewards.length_reward.alpha=0.3", "--training.output_dir", "~/runs/a"]
    settings = read_settings(["--config", str(overlay), *more])
    assert settings.rewards == {
        "emoji_reward": {"weight": 2, "max_emoji": 4},
        "length_reward": {"weight": 1, "target_length": 30, "alpha": 0.3},
    }
    assert settings.training["learning_rate"] == 2e-6 and settings.training["seed"] == 7
    assert settings.training["output_dir"] == "/home/me/runs/a" and settings.training["run_name"] == "2026-12-01"
    assert settings.prompts.system == "\u3000日本語で。\nAnswer：短く\n"


def test_only_a_record_takes_the_place_of_config_yaml(tmp_path):
    """Not a file that happens to have every section: what it leaves out is config.yaml's."""
    sections = "{model: {}, dataset: {}, prompts: {}, rewards: {}, training: {seed: 7}, lora: null, samples: {}}"
    (tmp_path / "all.yaml").write_text(sections)
    more = ["--rewards.owner/some-model-v0.1.weight", "0.5"]  # a reward model's name may hold dots
    more += ["--training.run_name", "1e6"]  # a text, which is recorded as one
    settings = read_settings(["--config", str(tmp_path / "all.yaml"), *more])
    assert settings.training["num_generations"] == 8 and settings.training["seed"] == 7
    assert settings.rewards == read_settings([]).rewards | {"owner/some-model-v0.1": {"weight": 0.5}}
    record = tmp_path / "record.yaml"
    record.write_text(settings.as_yaml())
    assert read_settings(["--config", str(record)]).sections() == settings.sections()
    record.write_text("\n".join(line for line in settings.as_yaml().splitlines() if "beta" not in line))
    recorded = read_settings(["--config", str(tmp_path / "all.yaml"), "--config", str(record)])
    assert "beta" not in recorded.training and recorded.training["seed"] == 7


# What is written on the command line, and what it is: texts and values by key
COMMAND_LINE = {
    "training.pad_to_multiple_of": {"8": 8, "auto": "auto"},  # a number or a word
    "training.scale_rewards": {"false": False, "none": "none"},
    "training.run_name": {"3": "3", "1e-6": "1e-6", "2026-13-45": "2026-13-45"},  # a name may look like a number
    "training.seed": {"8.0": 8, "010": 10},  # in YAML 1.1 eight
    "training.save_steps": {"50": 50, "0.5": 0.5},
    "training.bf16": {"true": True},
    "training.generation_kwargs": {"{top_k: 3, logit_bias: {1: 2}}": {"top_k": 3, "logit_bias": {1: 2}}},
    "training.generation_kwargs.top_k": {"5": {"top_k": 5}},
    "training.chat_template_kwargs.enable_thinking": {"false": {"enable_thinking": False}},
    "training.debug": {"[underflow_overflow]": ["underflow_overflow"]},
    "prompts.system": {"A: b # now": "A: b # now", "b # now": "b # now", "yes": "yes", "null": None},
    "prompts.rename.a": {"5": {"a": "5"}},
    "samples.questions": {"[富士山の高さは?, Q：x]": ["富士山の高さは?", "Q：x"]},
    "lora.loftq_config": {"{loftq_bits: 8}": {"loftq_bits": 8}},
    "model.token": {"true": True},
    "dataset.data_files.train": {"my.csv": {"train": "my.csv"}},
}


def test_a_value_of_the_command_line_is_of_its_keys_type():
    wrong = []
    for name, values in COMMAND_LINE.items():
        for text, value in values.items():
            section, key, *_ = name.split(".")
            settings = read_settings([f"--{name}", text])
            got = yaml.safe_load(settings.as_yaml())[section][key]
            if (type(got), got) != (type(value), value) or got != settings.sections()[section][key]:
                wrong.append((name, text, got))
    assert not wrong


def test_help_versions_and_settings_are_printed(capsys):
    for option, words in (("--help", "--print_config"), ("--version", "trl 1."), ("--print_config", "complete: true")):
        with pytest.raises(SystemExit):
            read_settings([option])
        assert words in capsys.readouterr().out
