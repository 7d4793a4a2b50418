"""config.yaml and the recipes say what the article says, and everything else is refused."""

import pytest
from conftest import ROOT
from peft import LoraConfig
from trl import GRPOConfig

from harness.command_line import parse_arguments
from harness.exits import UserError
from harness.settings import read_settings


def read(*arguments):
    options = parse_arguments(list(arguments))
    return read_settings(options.config, options.overrides)


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
    settings = read()
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
    settings = read("--config", str(ROOT / "recipes/lora.yaml"))
    lora = LoraConfig(**settings.lora)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.task_type) == (16, 64, 0.05, "CAUSAL_LM")
    assert lora.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"}
    assert settings.training["learning_rate"] > 1e-6
    assert settings.training["max_completion_length"] == 256  # the rest is config.yaml's


@pytest.mark.parametrize("overlay", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_parse(overlay):
    settings = read("--config", str(overlay))
    config = GRPOConfig(**{**settings.training, "bf16": False, "fp16": False, "use_cpu": True})
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 64  # the article's step


def test_overlays_merge_value_by_value_and_the_command_line_comes_last(tmp_path):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(
        "rewards:\n  emoji_reward: {weight: 2}\n  answer_reward: null\ntraining: {learning_rate: 2e-6}\n"
    )
    settings = read("--config", str(overlay), "--training.seed", "7", "--rewards.length_reward.alpha=0.3")
    assert settings.rewards == {
        "emoji_reward": {"weight": 2, "max_emoji": 4},
        "length_reward": {"weight": 1, "target_length": 30, "alpha": 0.3},
    }
    assert settings.training["learning_rate"] == 2e-6 and settings.training["seed"] == 7
    assert settings.merged["training"]["seed"] == 7  # as a number, not as the command line's string


def test_a_file_with_every_section_stands_alone(tmp_path):
    complete = (ROOT / "config.yaml").read_text().splitlines(keepends=True)
    (tmp_path / "all.yaml").write_text("".join(line for line in complete if "length_reward" not in line))
    assert "length_reward" not in read("--config", str(tmp_path / "all.yaml")).rewards


def test_a_reward_models_name_may_hold_dots():
    settings = read("--rewards.owner/model-v0.1.weight", "0.5")
    assert settings.rewards["owner/model-v0.1"] == {"weight": 0.5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--training.learnin_rate", "1"], "training.learnin_rate: unknown, did you mean learning_rate?"),
        (["--training.num_generations", "8.5"], "training.num_generations: expected int or null, got 8.5"),
        (["--training.max_prompt_length", "256"], "prompts.max_length"),
        (["--rewards.emoj_reward.weight", "1"], "did you mean emoji_reward?"),
    ],
)
def test_mistakes_are_named(arguments, words):
    with pytest.raises(UserError) as error:
        read(*arguments)
    assert words in str(error.value)
