"""What is loaded besides the policy: its tokenizer, an attention that this machine has, and the reward functions."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention

import rewards


def load_tokenizer(model: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The policy's own tokenizer; eos pads where it has no pad token. `model` is the section `model` of the settings."""
    shared = {
        key: model[key] for key in ("revision", "subfolder", "token", "cache_dir", "trust_remote_code") if key in model
    }
    tokenizer = AutoTokenizer.from_pretrained(model["pretrained_model_name_or_path"], **shared)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def usable_attention(requested: str | None) -> str | None:
    """`requested`, or sdpa where it is a flash attention that neither its package nor the kernels package can serve."""
    if requested is None or not requested.startswith("flash_attention"):
        return requested
    try:
        if not torch.cuda.is_available():
            raise RuntimeError("there is no CUDA GPU")
        lazy_import_flash_attention(requested)
    except Exception as error:  # a missing package, a build for another torch, no network: upstream raises many kinds
        reason = str(error).splitlines()[0]
        print(f"attention: sdpa instead of {requested} ({reason}); for it: pip install -r requirements-gpu.txt")
        return "sdpa"
    return requested


def build_rewards(entries: dict[str, dict[str, Any]]) -> tuple[list[Callable | torch.nn.Module], list[float]]:
    """What TRL takes as `reward_funcs` and `reward_weights`, from the section `rewards` of the settings.

    A reward model is loaded here as TRL would by its name, but never with the policy's arguments: TRL hands both the
    same `model_init_kwargs`.
    """
    functions, weights = [], []
    for name, entry in entries.items():
        arguments = {key: value for key, value in entry.items() if key != "weight"}
        if name in rewards.all_rewards():
            functions.append(functools.partial(rewards.all_rewards()[name], **arguments))
        else:
            functions.append(AutoModelForSequenceClassification.from_pretrained(name, num_labels=1))
        weights.append(entry["weight"])
    return functions, weights
