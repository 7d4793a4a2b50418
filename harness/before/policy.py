"""Policy: the model that is trained, without its weights; an attention that works here; reward models."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.errors import UserError, in_short
from harness.keys import FORMATS
from harness.reward import Reward
from harness.settings import Settings

WHERE_KEYS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "trust_remote_code")
NOT_ON_THE_HUB = {"RepositoryNotFoundError", "DatasetNotFoundError", "HFValidationError"}
HUB_UNREACHABLE = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError"}


@dataclass
class Policy:
    """The policy without its weights; `fallback` says why its attention is not what was asked for, if it is not.

    `keywords`: of from_pretrained, to load the weights; with a folder's absolute path, under which an adapter finds
    its base model from anywhere.
    """

    keywords: dict[str, Any]
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    fallback: str

    def load(self) -> PreTrainedModel:
        # cuDNN's attention plans anew for each shape, and its backward pass gives NaN at some lengths of padded batches
        # (pytorch/pytorch#196678). PyTorch's other kernels do neither.
        torch.backends.cuda.enable_cudnn_sdp(False)
        return AutoModelForCausalLM.from_pretrained(**self.keywords)

    def dtype(self) -> torch.dtype:
        """What model.dtype comes to: `auto`, or nothing, is the type that the model was saved in."""
        dtype = self.keywords.get("dtype") or "auto"
        return self.config.dtype or torch.float32 if dtype == "auto" else getattr(torch, dtype)


def load_policy(settings: Settings) -> Policy:
    """Config, tokenizer and a usable attention, from the section `model`; eos pads where there is no pad token."""
    model, key = settings.model, "model.pretrained_model_name_or_path"
    name = model["pretrained_model_name_or_path"]
    if (Path(name) / "adapter_config.json").exists():
        merge = f"merge it first: python -m harness merge {quote(name)}; then name {name.rstrip('/')}-merged"
        raise settings.error(key, f"{name} is a LoRA adapter; {merge}")
    # Without trust_remote_code upstream would ask at the terminal.
    where = {"trust_remote_code": False} | {key: model[key] for key in WHERE_KEYS if key in model}
    try:
        config = AutoConfig.from_pretrained(name, **where)
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
    except Exception as error:  # OSError, ValueError and huggingface_hub's own, each for several causes
        raise settings.error(key, loading_problem(name, error)) from error
    if tokenizer.chat_template is None:
        problem = f"the tokenizer of {name} has no chat template, so it is no chat model; choose an instruct model"
        raise settings.error(key, problem)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise settings.error(key, f"the tokenizer of {name} has neither a pad nor an eos token; set one of them there")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        attention, fallback = usable_attention(model.get("attn_implementation"))
    except ValueError as error:
        raise settings.error("model.attn_implementation", str(error)) from error
    absolute = str(Path(name).absolute()) if Path(name).is_dir() else name
    found = {"pretrained_model_name_or_path": absolute, "attn_implementation": attention}
    return Policy(model | found, config, tokenizer, fallback)


def usable_attention(requested: str | None) -> tuple[str | None, str]:
    """(attention to load, why it is not `requested`): the model's own where no package for a flash attention is there.

    Raises ValueError for a name that upstream does not know, and for a kernel of the Hub that cannot be loaded.
    """
    if requested in (None, "eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()) and not str(requested).startswith("flash"):
        return requested, ""
    if "/" not in requested and not requested.startswith("flash_attention"):
        raise ValueError(f"unknown {requested!r}; use one of eager, sdpa, flash_attention_2")
    try:
        if not torch.cuda.is_available():
            raise RuntimeError("there is no CUDA GPU")
        lazy_import_flash_attention(requested)
    except Exception as error:  # a missing package, a build for another torch, no network: upstream raises many kinds
        if "/" in requested:
            raise ValueError(f"the kernel {requested} does not load ({in_short(error)}); use sdpa") from error
        return None, f"not {requested}: {in_short(error)}; `make gpu` installs it"
    return requested, ""


def load_reward_models(rewards: list[Reward]) -> None:
    """Load each reward that is a model, as TRL would; but TRL would hand it the policy's `model_init_kwargs` too."""
    for reward in rewards:
        if reward.function is None:
            try:
                reward.model = AutoModelForSequenceClassification.from_pretrained(reward.name, num_labels=1)
                reward.tokenizer = AutoTokenizer.from_pretrained(reward.name)
            except Exception as error:
                raise UserError(f"rewards.{reward.name}: {loading_problem(reward.name, error)}") from error


def _files_of(folder: str, ending: str) -> bool:
    return any(Path(folder).glob(f"*.{ending}"))


def loading_problem(name: str, error: BaseException) -> str:
    """Why `name` could not be loaded, and what to do: a wrong path or name, no access, no network, bad data."""
    kinds, cause, denied = set(), error, None
    while cause is not None:
        kinds.add(type(cause).__name__)
        denied = denied or (cause.filename if isinstance(cause, PermissionError) else None)
        cause = cause.__cause__ or cause.__context__
    if "GatedRepoError" in kinds:
        return f"{name} is gated; accept its terms on its Hub page and run `hf auth login`"
    if name.endswith(".gguf") or (
        Path(name).is_dir() and _files_of(name, "gguf") and not _files_of(name, "safetensors")
    ):
        return f"{name} is GGUF, a format for inference; name the safetensors model that it was made from"
    if Path(name).is_dir() and set(name) & set("[]*?"):
        return f"{name}: datasets takes [ ] * ? in a folder's name for a pattern; rename it, or name its files"
    if "PermissionError" in kinds and not Path(name).exists():
        return f"{denied} cannot be written, where what is loaded is kept; set HF_HOME to a folder of your own"
    if "UnicodeDecodeError" in kinds:
        return f"{name} is not UTF-8; save it as UTF-8, or set dataset.encoding (cp932 for Japanese Windows)"
    if Path(name).is_file() and Path(name).suffix.lower() not in FORMATS and "FileNotFoundError" in kinds:
        return f"{name} is of no known format; use {', '.join(FORMATS)} (of a spreadsheet: save it as CSV, UTF-8)"
    unknown, unreachable = kinds & NOT_ON_THE_HUB, kinds & HUB_UNREACHABLE
    if Path(name).exists() or not (unknown or unreachable or "FileNotFoundError" in kinds):
        return f"{name} does not load ({in_short(error.__cause__ or error)}); fix it or choose another"
    here = f"there is no folder or file {Path(name).absolute()}"
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not (unknown or unreachable):
        return f"{here}; fix the path"
    if unknown:
        return f"{here}, and the Hub has no {name} that you may read; fix the name, or run `hf auth login`"
    return f"{here}, and the Hub cannot be reached; fix the path, or give the folder that `hf download {name}` makes"
