"""What the tests train on: a policy of the demo's shape, taught for two seconds, and its questions."""

import json
import os
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "demo"))
import train_grpo  # noqa: E402
from harness.exits import UserError  # noqa: E402


@pytest.fixture(scope="session")
def rows() -> list[dict]:
    return [json.loads(line) for line in (ROOT / "demo/questions.jsonl").open(encoding="utf-8")]


@pytest.fixture(scope="session")
def policy(tmp_path_factory, rows) -> str:
    """A folder that from_pretrained opens."""
    import build
    from transformers import set_seed

    set_seed(0)
    tokenizer = build.build_tokenizer(rows)
    model = build.build_model(tokenizer)
    build.pretrain(model, tokenizer, rows, epochs=3)
    folder = tmp_path_factory.mktemp("policy")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_arguments(policy: str, folder: Path) -> list[str]:
    """Command-line arguments of a run of the demo that takes two seconds: 4 steps of 8 completions."""
    values = {
        "model.pretrained_model_name_or_path": policy,
        "dataset.data_files": ROOT / "demo/questions.jsonl",
        "training.output_dir": folder / "run",
        "training.max_steps": 4,
        "training.num_generations": 4,
        "training.per_device_train_batch_size": 8,
        "training.steps_per_generation": 2,
        "training.max_completion_length": 16,
        "training.logging_steps": 1,
    }
    overrides = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    return ["--config", str(ROOT / "demo/config.yaml"), *overrides]


@pytest.fixture
def tiny(policy, tmp_path) -> list[str]:
    return tiny_arguments(policy, tmp_path)


def refused(arguments: list[str]) -> str:
    """The one-line message with which train_grpo.py refuses a command line."""
    with pytest.raises(UserError) as error:
        train_grpo.main(arguments)
    message = str(error.value)
    assert "\n" not in message and ": " in message
    return message
