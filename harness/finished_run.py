"""A finished run, loaded again by the tools that are run after training: its models and rewards, and how it sampled."""

import logging
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, enable_progress_bar
from trl import GRPOConfig

from harness.exits import UserError
from harness.loading import load_reward_model, loading_problem
from harness.rewarding import build_rewards, columns, reward_functions
from harness.samples import Reward
from harness.settings import Settings

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no package says anything but errors."""
    logging.disable(logging.WARNING)
    disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
        enable_progress_bar()


def load_model(settings: Settings, folder: Path | None = None) -> PreTrainedModel | PeftModel:
    """The base model; or what `folder` holds, in the dtype it was saved in: a whole model, or the base with an adapter.

    The attention is the model's own choice: not every machine has the one of the training.
    """
    name, unset = settings.model["pretrained_model_name_or_path"], {"attn_implementation": None, "device_map": None}
    try:
        if folder and not (folder / "adapter_config.json").exists():
            name, trust = str(folder), settings.model.get("trust_remote_code", False)
            model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=trust)
        else:
            model = AutoModelForCausalLM.from_pretrained(**settings.model | unset)
            if folder:
                name, model = str(folder), PeftModel.from_pretrained(model, folder)
    except Exception as error:  # as in load_policy; a folder's files may be damaged, or for another base model
        raise UserError(f"model: {loading_problem(name, error)}") from error
    return model.to(DEVICE).eval()


def load_rewards(settings: Settings) -> list[Reward]:
    """Every reward as `scores` takes it, also those that the run left out as its data lack a column."""
    every = [column for function in reward_functions().values() for column in columns(function)]
    rewards = []
    for name, reward in zip(settings.rewards, build_rewards(settings, every), strict=True):
        model = isinstance(reward, str)
        function = load_reward_model(reward).to(DEVICE) if model else reward
        rewards.append((name, function, AutoTokenizer.from_pretrained(reward) if model else None))
    return rewards


def sampling_arguments(settings: Settings) -> Namespace:
    """What `complete` needs of GRPOConfig, which itself refuses batches made for more GPUs than are here."""
    defaults = {name: field.default for name, field in GRPOConfig.__dataclass_fields__.items()}
    return Namespace(**defaults | settings.training)


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """As TRL has them: every one that the model declares, and the tokenizer's."""
    declared = model.generation_config.eos_token_id
    return list({tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None})
