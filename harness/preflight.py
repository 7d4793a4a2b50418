"""Preflight: what can go wrong goes wrong here, in seconds and in one line; then the plan of the run."""

import math
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from huggingface_hub import HfApi
from packaging.version import Version
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, TrainerState
from transformers.integrations import get_reporting_integration_callbacks
from trl import GRPOConfig

import rewards
from harness.data import Data
from harness.exits import UserError
from harness.guard import RewardError, score
from harness.models import Policy, loading_problem
from harness.plan import footprint, print_plan, weights_dtype
from harness.settings import Settings, check_names

if TYPE_CHECKING:
    from peft import LoraConfig

TRLS_OWN = {  # of GenerationConfig, what is not a training key under the same name
    "max_new_tokens": "set training.max_completion_length",
    "max_length": "set training.max_completion_length",
    "max_cache_len": "it follows from prompts.max_length and training.max_completion_length",
    "num_return_sequences": "set training.num_generations",
    "disable_compile": "training.cache_implementation: static compiles, nothing else does",
    **dict.fromkeys(
        ("do_sample", "use_cache", "num_beams", "return_dict_in_generate"), "GRPO samples, and one way only"
    ),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), "the tokenizer says which"),
}


def check_machine(settings: Settings) -> None:
    """Can this machine run these settings at all? Raises UserError."""
    training = settings.training
    if not training.get("use_cpu"):
        if not torch.cuda.is_available():
            raise UserError("machine: no CUDA GPU found; `make demo` runs the same code on a laptop")
        if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
            count = torch.cuda.device_count()
            raise UserError(
                f"machine: {count} GPUs are visible to plain python; use all of them with `accelerate launch "
                f"--num_processes {count} train_grpo.py`, or one with CUDA_VISIBLE_DEVICES=0"
            )
        if (
            _value(training, "bf16") is not False
            and not training.get("fp16")
            and not torch.cuda.is_bf16_supported(False)
        ):
            raise UserError(
                f"training.bf16: {torch.cuda.get_device_name()} has no bfloat16; set training.bf16: false and "
                "training.fp16: true (with model.dtype: float32, or LoRA)"
            )
    if training.get("use_vllm"):
        if find_spec("vllm") is None:
            raise UserError("training.use_vllm: vLLM is not installed; run `make gpu`, or set it to false")
        from importlib.metadata import version

        if not Version("0.22.0") <= Version(Version(version("vllm")).base_version) <= Version("0.31.0"):
            raise UserError(f"training.use_vllm: TRL takes vLLM 0.22 to 0.31, not {version('vllm')}; run `make gpu`")


def check_batches(training: dict[str, Any], world: int) -> None:
    """TRL samples whole groups of `num_generations` completions at a time; says which batch sizes work."""
    group = _value(training, "num_generations")
    steps = _value(training, "steps_per_generation") or _value(training, "gradient_accumulation_steps")
    if training.get("generation_batch_size"):
        _check_divides("generation_batch_size", training["generation_batch_size"], 1, "", group)
    else:
        per_device = _value(training, "per_device_train_batch_size")
        factors = f" * {steps} steps_per_generation" + (f" * {world} processes" if world > 1 else "")
        _check_divides("per_device_train_batch_size", per_device, steps * world, factors, group)
    if _value(training, "eval_strategy") != "no":
        group = training.get("num_generations_eval") or group
        per_device = _value(training, "per_device_eval_batch_size")
        factors = f" * {world} processes" if world > 1 else ""
        _check_divides("per_device_eval_batch_size", per_device, world, factors, group)


def check_generation_kwargs(training: dict[str, Any]) -> None:
    """Only what TRL does not set itself, and upstream knows: the rest would be ignored, or untrue in the report."""
    given = training.get("generation_kwargs") or {}
    if not isinstance(given, dict):
        raise UserError(f"training.generation_kwargs: expected a mapping, got {given!r}; mend the value")
    for key in given:
        if key in TRLS_OWN:
            raise UserError(f"training.generation_kwargs.{key}: {TRLS_OWN[key]}; remove it here")
        if key in GRPOConfig.__dataclass_fields__:
            raise UserError(f"training.generation_kwargs.{key}: is a setting of its own; write training.{key} instead")
    if training.get("use_vllm"):  # the arguments are vLLM's then, which refuses what it does not know
        if training.get("cache_implementation"):
            raise UserError(
                "training.cache_implementation: vLLM has its own cache; leave it out, or set use_vllm: false"
            )
        return
    check_names(given, vars(GenerationConfig()), "training.generation_kwargs.")
    try:
        GenerationConfig(cache_implementation=training.get("cache_implementation"), **given)
    except Exception as error:  # ValueError, TypeError: a value that makes no sense
        where = (
            "training.cache_implementation" if "cache_implementation" in str(error) else "training.generation_kwargs"
        )
        raise UserError(f"{where}: {' '.join(str(error).split())[:200]}; mend it") from error


def check_cache(settings: Settings, config: PreTrainedConfig, arguments: GRPOConfig) -> None:
    """A static cache keeps values in the type of the keys, which autocast makes different ones; raises UserError."""
    computed = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    if arguments.cache_implementation == "static" and computed and weights_dtype(settings, config) == torch.float32:
        name = str(computed).removeprefix("torch.")
        raise UserError(
            f"training.cache_implementation: static does not work with float32 weights computed in {name}; set "
            f"model.dtype: {name}, or leave it out"
        )


def _check_divides(key: str, batch: int, factor: int, factors: str, group: int) -> None:
    if batch * factor % group:
        unit = group // math.gcd(group, factor)
        below, above = batch // unit * unit, (batch // unit + 1) * unit
        raise UserError(
            f"training.{key}: {batch}{factors} = {batch * factor} completions are no multiple of num_generations "
            f"{group}; use {f'{below} or ' if below else ''}{above}"
        )


def training_arguments(settings: Settings) -> "tuple[GRPOConfig, LoraConfig | None]":
    """GRPOConfig and LoraConfig of the settings; what they refuse becomes one line."""
    check_batches(settings.training, int(os.environ.get("WORLD_SIZE", 1)))
    check_generation_kwargs(settings.training)
    if not settings.training.get("output_dir"):
        raise UserError("training.output_dir: is empty; name the folder that the run writes to")
    elsewhere = {
        key: value for key, value in settings.model.items() if key in ("revision", "subfolder", "token", "cache_dir")
    }
    training = dict(settings.training)
    if training.get("cache_implementation") == "static" and settings.prompts.max_length:  # so without vLLM
        # One shape for all steps; else each prompt that is longer than all before it compiles decoding anew.
        longest = settings.prompts.max_length + _value(training, "max_completion_length")
        training["generation_kwargs"] = {"max_cache_len": longest, **(training.get("generation_kwargs") or {})}
    try:
        arguments = GRPOConfig(
            **training,
            reward_weights=[entry["weight"] for entry in settings.rewards.values()],
            trust_remote_code=settings.model.get("trust_remote_code", False),
            model_init_kwargs=elsewhere or None,  # for the reference model, which TRL loads by the policy's name
        )
    except Exception as error:  # ValueError, TypeError, ImportError and more: all about a value of this section
        raise UserError(f"training: {' '.join(str(error).split())}; mend it in config.yaml") from error
    if arguments.eval_strategy != "no" and not settings.samples.held_out:
        raise UserError("training.eval_strategy: there is nothing to evaluate on; give samples.held_out some rows")
    try:
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()
    except Exception as error:  # ValueError: unknown; RuntimeError: the tracker's package is not installed
        raise UserError(f"training.report_to: {' '.join(str(error).split())[:200]}; install it, or set none") from error
    if arguments.push_to_hub:
        try:
            HfApi(token=arguments.hub_token).whoami()
        except Exception as error:  # no network, no token, a wrong token
            problem = f"the Hub does not let you in ({type(error).__name__})"
            raise UserError(f"training.push_to_hub: {problem}; run `hf auth login`, or set it to false") from error
    if settings.lora is None:
        return arguments, None
    from peft import LoraConfig

    try:
        return arguments, LoraConfig(**settings.lora)
    except Exception as error:
        raise UserError(f"lora: {' '.join(str(error).split())}; mend it in the recipe") from error


def check_rewards(names: list[str], functions: list, dataset: Dataset) -> None:
    """Call each reward function on two completions with a real row, as strings and as messages; raises UserError."""
    row = dataset[0]
    columns = {key: [value] * 2 for key, value in row.items() if key != "prompt"}
    texts = ["", "富士山の高さは3776メートルです🗻✨"]
    as_messages = [[{"role": "assistant", "content": text}] for text in texts]
    for name, function in zip(names, functions, strict=True):
        if isinstance(function, str):
            try:
                AutoConfig.from_pretrained(name, trust_remote_code=False)
            except Exception as error:  # as in load_policy
                raise UserError(loading_problem(f"rewards.{name}", name, error)) from error
            continue
        if missing := sorted(set(rewards.columns(rewards.all_rewards()[name])) - set(dataset.column_names)):
            raise UserError(
                f"rewards.{name}: needs the column {', '.join(missing)}, but the data has "
                f"{', '.join(dataset.column_names)}; set rewards.{name}: null to leave the reward out"
            )
        for completions in (texts, as_messages):
            score(function, [row["prompt"]] * 2, completions, columns, TrainerState())


def check_lengths(settings: Settings, config: PreTrainedConfig, arguments: GRPOConfig, dataset: Dataset) -> None:
    """Enough prompts for a first step, and room for prompt and completion in the model's context; raises UserError."""
    needed = arguments.generation_batch_size // arguments.num_generations
    if len(dataset) < needed:
        raise UserError(
            f"training: {len(dataset)} prompts, but one generation batch takes {needed} (generation_batch_size "
            f"{arguments.generation_batch_size} / num_generations {arguments.num_generations}); TRL would save an "
            "untrained model; use more data, smaller batches, or a smaller samples.held_out"
        )
    context = config.get_text_config().max_position_embeddings
    if (settings.prompts.max_length or 0) + arguments.max_completion_length > context:
        raise UserError(
            f"training.max_completion_length: {settings.prompts.max_length or 0} tokens of prompt and "
            f"{arguments.max_completion_length} of completion exceed the model's context of {context}; lower it"
        )


def check_output(output_dir: str, needed: float, resume: bool) -> None:
    """No run there yet, and room for the model, the checkpoints that save_total_limit keeps, and one being written."""
    folder = Path(output_dir).absolute()
    holds_run = any(folder.glob("checkpoint-*")) or (folder / "trainer_state.json").exists()
    if holds_run and not resume:
        raise UserError(
            f"training.output_dir: {output_dir} already holds a run, which is never overwritten; go on with it by "
            "--resume, remove the folder, or choose another with --training.output_dir"
        )
    try:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"training.output_dir: {output_dir} cannot be written ({error.strerror}); choose another"
        ) from error
    free = shutil.disk_usage(folder).free
    if new:
        folder.rmdir()  # --check leaves nothing
    if free < needed:
        raise UserError(
            f"training.output_dir: {needed / 1e6:,.0f} MB are needed for the model and its checkpoints, "
            f"{free / 1e6:,.0f} MB are free in {folder}; free some, or lower save_total_limit"
        )


def preflight(
    settings: Settings,
    arguments: GRPOConfig,
    lora: "LoraConfig | None",
    policy: Policy,
    data: Data,
    functions: list,
    resume: bool,
) -> None:
    """Check what needs the data and the model's shape, then print what the run is about to do; raises UserError."""
    check_lengths(settings, policy.config, arguments, data.train)
    check_cache(settings, policy.config, arguments)
    size = footprint(settings, policy.config, arguments, lora)
    try:
        check_rewards(list(settings.rewards), functions, data.train)
        if arguments.process_index == 0:  # which looks at the folder before it writes there
            print_plan(settings, arguments, policy, data, functions, size)
            check_output(arguments.output_dir, size.disk, resume)
    except RewardError as error:
        raise UserError(str(error)) from error


def _value(training: dict[str, Any], name: str) -> Any:
    """The setting, or upstream's default."""
    return training.get(name, GRPOConfig.__dataclass_fields__[name].default)
