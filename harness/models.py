"""What is loaded besides the policy's weights: its config and tokenizer, an attention that works, the rewards."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import rewards
from harness.exits import UserError
from harness.guard import guarded

WHERE_KEYS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "trust_remote_code")


@dataclass
class Policy:
    """The policy without its weights; `fallback` says why `attention` is not what was asked for, if it is not."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    attention: str | None
    fallback: str


def load_policy(model: dict[str, Any]) -> Policy:
    """Config, tokenizer and a usable attention, from the section `model`; eos pads where there is no pad token."""
    name = model["pretrained_model_name_or_path"]
    # Where it says nothing of trust_remote_code, upstream would ask at the terminal.
    where = {"trust_remote_code": False} | {key: model[key] for key in WHERE_KEYS if key in model}
    try:
        config = AutoConfig.from_pretrained(name, **where)
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
    except Exception as error:  # OSError, ValueError and huggingface_hub's own, each for several causes
        raise UserError(loading_problem("model.pretrained_model_name_or_path", name, error)) from error
    if tokenizer.chat_template is None:
        raise UserError(
            f"model.pretrained_model_name_or_path: the tokenizer of {name} has no chat template, so it is no chat "
            "model; choose an instruct model"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Policy(config, tokenizer, *usable_attention(model.get("attn_implementation")))


def usable_attention(requested: str | None) -> tuple[str | None, str]:
    """(attention to load, why it is not `requested`): sdpa where a flash attention cannot be served by any package."""
    if (
        requested is not None
        and "/" not in requested
        and requested not in ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
    ):
        known = ", ".join(["eager", "sdpa", "flash_attention_2"])
        raise UserError(f"model.attn_implementation: unknown {requested!r}; use one of {known}")
    if requested is None or not ("/" in requested or requested.startswith("flash_attention")):
        return requested, ""
    try:
        if not torch.cuda.is_available():
            raise RuntimeError("there is no CUDA GPU")
        lazy_import_flash_attention(requested)
    except Exception as error:  # a missing package, a build for another torch, no network: upstream raises many kinds
        if "/" in requested:
            problem = f"the kernel {requested} cannot be had ({_first_line(error)})"
            raise UserError(f"model.attn_implementation: {problem}; use sdpa") from error
        return "sdpa", f"not {requested}: {_first_line(error)}; `make gpu` installs it"
    return requested, ""


def build_rewards(entries: dict[str, dict[str, Any]]) -> list[Callable | str]:
    """Each entry of the section `rewards`: its function of rewards.py, with its arguments and guarded, or its name."""
    functions = rewards.all_rewards()
    built = []
    for name, entry in entries.items():
        arguments = {key: value for key, value in entry.items() if key != "weight"}
        built.append(guarded(functools.partial(functions[name], **arguments)) if name in functions else name)
    return built


def load_reward_model(name: str) -> torch.nn.Module:
    """What TRL does with a reward's name; but TRL would also hand it the policy's `model_init_kwargs`."""
    try:
        return AutoModelForSequenceClassification.from_pretrained(name, num_labels=1)
    except Exception as error:
        raise UserError(loading_problem(f"rewards.{name}", name, error)) from error


def loading_problem(where: str, name: str, error: BaseException) -> str:
    """One line on why `name` could not be loaded: a wrong path or name, no access, no network, bad data."""
    kinds, cause = set(), error
    while cause is not None:
        kinds.add(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    looks_local = name.startswith((".", "/", "~")) or Path(name).exists() or name.count("/") > 1
    if "GatedRepoError" in kinds:
        return f"{where}: {name} is gated; accept its terms on its Hub page and run `hf auth login`"
    if {"RepositoryNotFoundError", "DatasetNotFoundError"} & kinds:
        return f"{where}: the Hub has no {name}, or not for you; mend the name, or run `hf auth login`"
    if {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError"} & kinds and not looks_local:
        return (
            f"{where}: the Hub cannot be reached and {name} is not in the cache; run `hf download` where there is a "
            "network, and give the folder here"
        )
    if "HFValidationError" in kinds or isinstance(error, FileNotFoundError):
        return f"{where}: no folder or file {name} ({_first_line(error)}); mend the path"
    return f"{where}: {name} does not load ({_first_line(error.__cause__ or error)}); mend it or choose another"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
