"""Policy: the model that is trained, without its weights; an attention that works here; reward models."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.errors import UserError, in_short
from harness.reward import Reward
from harness.settings import Settings

NAME = "model.pretrained_model_name_or_path"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of a trained model that is loaded again
WHERE_KEYS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "trust_remote_code")


@dataclass
class Policy:
    """The policy without its weights.

    `keywords`: of from_pretrained, to load the weights; with a folder's absolute path, under which an adapter finds
    its base model from anywhere. `fallback`: why its attention is not what was asked for, or "". `dtype`: of its
    weights. `precision`: see `precision`. `generation`: of its generation_config.json.
    """

    keywords: dict[str, Any]
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    fallback: str
    dtype: torch.dtype
    precision: torch.dtype | None
    generation: GenerationConfig | None = None

    def load(self) -> PreTrainedModel:
        # cuDNN's attention plans anew for each shape, and its backward pass gives NaN at some lengths of padded batches
        # (pytorch/pytorch#196678). PyTorch's other kernels do neither.
        torch.backends.cuda.enable_cudnn_sdp(False)
        return AutoModelForCausalLM.from_pretrained(**self.keywords)


def load_policy(settings: Settings) -> Policy:
    """Config, tokenizer and a usable attention, from the section `model`; eos pads where there is no pad token."""
    model = settings.model
    name = model["pretrained_model_name_or_path"]
    if (Path(name) / "adapter_config.json").exists():
        raise settings.error(NAME, f"{name} is a LoRA adapter; make it a model: python -m harness merge {quote(name)}")
    # Without trust_remote_code upstream would ask at the terminal.
    where = {"trust_remote_code": False} | {key: model[key] for key in WHERE_KEYS if key in model}
    try:
        config = AutoConfig.from_pretrained(name, **where)
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        try:
            generation = GenerationConfig.from_pretrained(name, **where)
        except OSError as error:
            if _cause(error, ValueError):  # no JSON, for which upstream would take its defaults
                raise
            generation = GenerationConfig.from_model_config(config)  # the model has no such file
    except Exception as error:  # OSError, ValueError and huggingface_hub's own, each for several causes
        raise settings.error(NAME, loading_problem(name, error)) from error
    if tokenizer.chat_template is None:
        raise settings.error(NAME, f"the tokenizer of {name} has no chat template; choose an instruct model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise settings.error(NAME, f"the tokenizer of {name} has neither a pad nor an eos token")
    try:
        attention, fallback = usable_attention(model.get("attn_implementation"))
    except ValueError as error:
        raise settings.error("model.attn_implementation", str(error)) from error
    if Path(name).is_dir():
        name = str(Path(name).absolute())
    keywords = model | {"pretrained_model_name_or_path": name, "attn_implementation": attention}
    dtype = weights_dtype(model, config)
    return Policy(keywords, config, tokenizer, fallback, dtype, precision(settings.training), generation)


def eos_token_ids(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """As TRL has them: every one that the model declares, and the tokenizer's."""
    declared = config.eos_token_id
    if not isinstance(declared, list):
        declared = [declared]
    return sorted({tokenizer.eos_token_id, *declared} - {None})


def weights_dtype(model: dict[str, Any], config: PreTrainedConfig) -> torch.dtype:
    """What model.dtype comes to: `auto`, or nothing, is the type that the model was saved in."""
    dtype = model.get("dtype") or "auto"
    if dtype == "auto":
        return config.dtype or torch.float32
    return getattr(torch, dtype)


def precision(training: dict[str, Any]) -> torch.dtype | None:
    """In what matrix products are computed, whatever the weights are; None: as the weights are.

    Of the settings, not of GRPOConfig, which --check makes for the CPU where there is no GPU.
    """
    if training.get("fp16"):
        return torch.float16
    if training.get("bf16") is False:
        return None
    return torch.bfloat16  # upstream's default


def usable_attention(requested: str | None) -> tuple[str | None, str]:
    """(attention to load, why it is not `requested`): the model's own where no package for a flash attention is there.

    Raises ValueError for a name that upstream does not know, and for a kernel of the Hub that cannot be loaded.
    """
    if requested is None:
        return None, ""
    from_hub = "/" in requested
    if not from_hub and not requested.startswith("flash_attention"):
        if requested != "eager" and requested not in ALL_ATTENTION_FUNCTIONS.valid_keys():
            raise ValueError(f"unknown {requested!r}; use one of eager, sdpa, flash_attention_2")
        return requested, ""
    problem = "there is no CUDA GPU"
    if torch.cuda.is_available():
        try:
            lazy_import_flash_attention(requested)
            return requested, ""
        except Exception as error:  # a missing package, a build for another torch, no network: many kinds
            problem = f"{in_short(error)}; `make gpu` installs it"
    if from_hub:
        raise ValueError(f"the kernel {requested} does not load ({problem})")
    return None, f"not {requested}: {problem}"


class CheckpointingAsItWas(TrainerCallback):
    """TRL switches activation checkpointing off to sample, and on again: of each layer as it was when training began.

    Upstream would leave one hook more on the embeddings each time, for which what is compiled is compiled anew, and
    TRL 1.16 does not know every_n_layers and offload of activation_checkpointing_kwargs.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        was = {
            module: module.gradient_checkpointing
            for module in model.modules()
            if hasattr(module, "gradient_checkpointing")
        }

        def switch(on: bool) -> None:
            for layer, checkpointing in was.items():
                layer.gradient_checkpointing = on and checkpointing

        model.gradient_checkpointing_disable = lambda: switch(False)
        model.gradient_checkpointing_enable = lambda *_, **kwargs: switch(True)


def changes_base(lora: LoraConfig) -> bool:
    """Whether such an adapter takes something out of a base weight when it is put in, as pissa, olora and loftq do.

    It does so again when it is loaded from its folder; but switched off, it leaves no model that ever was.
    """
    start = LoraConfig(init_lora_weights=lora.init_lora_weights, loftq_config=lora.loftq_config, target_modules=["0"])
    with torch.random.fork_rng():
        layer = torch.nn.Linear(64, 64)
        weight = layer.weight.clone()
        get_peft_model(torch.nn.Sequential(layer), start)
    return not torch.equal(layer.weight, weight)


def load_model(section: dict, folder: Path | None = None) -> PreTrainedModel | PeftModel:
    """The base model that the section `model` names; or what `folder` holds, in the dtype it was saved in: a whole
    model, or the base with an adapter.

    The attention is the model's own choice: not every machine has the one of the training.
    """
    name = section["pretrained_model_name_or_path"]
    try:
        if folder and not (folder / "adapter_config.json").exists():
            name = str(folder)
            trust = section.get("trust_remote_code", False)
            model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=trust)
        else:
            keywords = section | {"attn_implementation": None, "device_map": None}
            model = AutoModelForCausalLM.from_pretrained(**keywords)
            if folder:
                name = str(folder)
                model = PeftModel.from_pretrained(model, name)
    except Exception as error:  # as in load_policy; a folder's files may be damaged, or for another base model
        raise UserError(f"model: {loading_problem(name, error)}") from error
    return model.to(DEVICE).eval()


def load_reward_models(rewards: list[Reward]) -> None:
    """Load each reward that is a model, as TRL would; but TRL would hand it the policy's `model_init_kwargs` too."""
    for reward in rewards:
        if reward.function is not None:
            continue
        try:
            reward.model = AutoModelForSequenceClassification.from_pretrained(reward.name, num_labels=1)
            reward.tokenizer = AutoTokenizer.from_pretrained(reward.name)
        except Exception as error:
            raise UserError(f"rewards.{reward.name}: {loading_problem(reward.name, error)}") from error


def loading_problem(name: str, error: BaseException) -> str:
    """Why a model could not be loaded: in one line where there is something to do, else in upstream's words."""
    if _cause(error, GatedRepoError):
        return f"{name} is gated; accept its terms on its Hub page and run `hf auth login`"
    if any(Path(name).glob("*.gguf")) and not any(Path(name).glob("*.safetensors")) or name.endswith(".gguf"):
        return f"{name} is GGUF, a format for inference; name the safetensors model that it was made from"
    if Path(name).exists():
        return f"{name} does not load ({in_short(error.__cause__ or error)})"
    denied = _cause(error, PermissionError)
    if denied:
        return f"{denied.filename} cannot be written; set HF_HOME to a folder of your own"
    nowhere = f"there is no folder or file {Path(name).absolute()}"
    if Path(name).with_name("build.py").exists():  # of demo/model, demo/real/model
        return f"{nowhere} yet; run `make {Path(name).parent.name}`"
    if _cause(error, HFValidationError):  # it can be no name on the Hub
        return nowhere
    if _cause(error, RepositoryNotFoundError):
        return f"{nowhere}, and no {name} on the Hub that you may read (`hf auth login`)"
    if _cause(error, LocalEntryNotFoundError, ConnectionError):
        return f"{nowhere}, and the Hub cannot be reached; `hf download {name}` elsewhere makes a folder of it"
    return f"{name} does not load ({in_short(error)})"


def _cause(error: BaseException | None, *kinds: type[BaseException]) -> BaseException | None:
    """The first of an error, its cause, the cause of that, ... that is of one of these kinds."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or error.__context__
    return error
