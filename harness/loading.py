"""Loading: the policy without its weights, an attention that works here, reward models, and prompts from the data."""

import difflib
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset, load_dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import GRPOConfig

from harness.exits import UserError, first_line
from harness.settings import Settings

WHERE_KEYS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "trust_remote_code")
# TRL or we pass something else under these names, or TRL reads them as more than a column for the rewards.
TAKEN = {"prompts", "completions", "completion", "completion_ids", "trainer_state", "log_extra", "log_metric"}
TAKEN |= {"tools", "image", "images", "environment", "environments", "held_out", "prompt_length"}
NOT_ON_THE_HUB = {"RepositoryNotFoundError", "DatasetNotFoundError", "HFValidationError"}
HUB_UNREACHABLE = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError"}


@dataclass
class Policy:
    """The policy without its weights; `fallback` says why `attention` is not what was asked for, if it is not."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    attention: str | None
    fallback: str


@dataclass
class Data:
    """Rows with a column `prompt` of chat messages: to train on, never trained on; and how many were too long."""

    train: Dataset
    held_out: Dataset
    dropped: int


def load_policy(settings: Settings) -> Policy:
    """Config, tokenizer and a usable attention, from the section `model`; eos pads where there is no pad token."""
    model, key = settings.model, "model.pretrained_model_name_or_path"
    name = model["pretrained_model_name_or_path"]
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
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        return Policy(config, tokenizer, *usable_attention(model.get("attn_implementation")))
    except ValueError as error:
        raise settings.error("model.attn_implementation", str(error)) from error


def usable_attention(requested: str | None) -> tuple[str | None, str]:
    """(attention to load, why it is not `requested`): sdpa where no package for a flash attention is there.

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
            raise ValueError(f"the kernel {requested} does not load ({first_line(error)}); use sdpa") from error
        return "sdpa", f"not {requested}: {first_line(error)}; `make gpu` installs it"
    return requested, ""


def load_reward_model(name: str) -> torch.nn.Module:
    """What TRL does with a reward's name; but TRL would also hand it the policy's `model_init_kwargs`."""
    try:
        return AutoModelForSequenceClassification.from_pretrained(name, num_labels=1)
    except Exception as error:
        raise UserError(f"rewards.{name}: {loading_problem(name, error)}") from error


def load_data(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Data:
    """Load `dataset`, make `prompts` of it with the policy's chat template, hold `samples.held_out` rows out.

    A prompt over `prompts.max_length` tokens, the template and its generation prompt included, is dropped.
    """
    prompts = settings.prompts
    rows = _load_rows(settings)
    if prompts.column not in rows.column_names:
        near = difflib.get_close_matches(prompts.column, rows.column_names, n=1, cutoff=0.4)
        usual = [name for name in ("query", "question", "prompt", "instruction", "input") if name in rows.column_names]
        likely = f"did you mean {(near + usual)[0]}?" if near + usual else "choose one of them"
        problem = f"{prompts.column!r} is no column of the data, which has {', '.join(rows.column_names)}; {likely}"
        raise settings.error("prompts.column", problem)
    rows = _without_empty_questions(settings, rows)
    if taken := sorted(TAKEN & set(rows.column_names) - {prompts.column}):
        print(f"note: left out of the data, as these names are taken: {', '.join(taken)}")
        rows = rows.remove_columns(taken)

    system = [{"role": "system", "content": prompts.system}] if prompts.system else []

    def add_prompts(batch: dict[str, list]) -> dict[str, list]:
        messages = [system + [{"role": "user", "content": question}] for question in batch[prompts.column]]
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        return {"prompt": messages, "prompt_length": [len(ids) for ids in tokens]}

    rows = rows.map(add_prompts, batched=True, desc="Chat template")
    kept = range(len(rows))
    if prompts.max_length is not None:
        kept = [i for i, length in enumerate(rows["prompt_length"]) if length <= prompts.max_length]
    if not kept:
        problem = (
            f"no prompt is left; the shortest of {len(rows):,} has {min(rows['prompt_length'])} tokens after the chat "
            f"template, {prompts.max_length} are allowed; raise it"
        )
        raise settings.error("prompts.max_length", problem)
    usable = rows.select(kept).remove_columns("prompt_length")
    seed = settings.training.get("seed", GRPOConfig.seed)
    held_out = random.Random(seed).sample(range(len(usable)), min(settings.samples.held_out, len(usable)))
    trained = sorted(set(range(len(usable))) - set(held_out))
    return Data(usable.select(trained), usable.select(sorted(held_out)), len(rows) - len(kept))


def loading_problem(name: str, error: BaseException) -> str:
    """Why `name` could not be loaded, and what to do: a wrong path or name, no access, no network, bad data."""
    kinds, cause = set(), error
    while cause is not None:
        kinds.add(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    if "GatedRepoError" in kinds:
        return f"{name} is gated; accept its terms on its Hub page and run `hf auth login`"
    unknown, unreachable = kinds & NOT_ON_THE_HUB, kinds & HUB_UNREACHABLE
    if Path(name).exists() or not (unknown or unreachable or "FileNotFoundError" in kinds):
        return f"{name} does not load ({first_line(error.__cause__ or error)}); fix it or choose another"
    here = f"there is no folder or file {Path(name).absolute()}"
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not (unknown or unreachable):
        return f"{here}; fix the path"
    if unknown:
        return f"{here}, and the Hub has no {name} that you may read; fix the name, or run `hf auth login`"
    return f"{here}, and the Hub cannot be reached; fix the path, or give the folder that `hf download {name}` makes"


def _load_rows(settings: Settings) -> Dataset:
    source, limit = settings.dataset, settings.prompts.limit
    if source.get("streaming") and limit is None:
        raise settings.error("prompts.limit", "streaming has to know where to stop; give a number of rows")
    try:
        rows = load_dataset(**source)
        if isinstance(rows, IterableDataset):
            rows = Dataset.from_list(list(rows.take(limit)), features=rows.features)
    except Exception as error:  # datasets, huggingface_hub, pyarrow and pandas each raise kinds of their own
        if "split" in str(error):  # Unknown split "trian". Should be one of ['train'].
            hint = "streaming takes no slices, use prompts.limit" if source.get("streaming") else "fix it"
            raise settings.error("dataset.split", f"{error}; {hint}") from error
        key = "data_files" if source.get("data_files") else "path"
        raise settings.error(f"dataset.{key}", loading_problem(str(source[key]), error)) from error
    if isinstance(rows, dict):
        raise settings.error("dataset.split", f"none given; choose one of {', '.join(rows)}")
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def _without_empty_questions(settings: Settings, rows: Dataset) -> Dataset:
    questions = rows[settings.prompts.column]
    bad = [i for i, question in enumerate(questions) if not isinstance(question, str) or not question.strip()]
    if bad and not settings.prompts.drop_empty:
        problem = (
            f"{len(bad)} of {len(rows):,} questions are no text (rows {', '.join(map(str, bad[:5]))}, the first "
            f"{questions[bad[0]]!r}); fix the data, or set prompts.drop_empty: true"
        )
        raise settings.error("prompts.column", problem)
    return rows.select(sorted(set(range(len(rows))) - set(bad))) if bad else rows
