"""Preflight: what can go wrong goes wrong here, in seconds and in one line; then the plan of the run."""

import asyncio
import inspect
import math
import os
import shutil
import statistics
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase, TrainerState
from trl import GRPOConfig

import rewards
from harness.guard import RewardError
from harness.settings import Settings, UserError

GB = 1e9


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


def _check_divides(key: str, batch: int, factor: int, factors: str, group: int) -> None:
    if batch * factor % group:
        unit = group // math.gcd(group, factor)
        below, above = batch // unit * unit, (batch // unit + 1) * unit
        raise UserError(
            f"training.{key}: {batch}{factors} = {batch * factor} completions are no multiple of num_generations "
            f"{group}; use {f'{below} or ' if below else ''}{above}"
        )


def training_arguments(settings: Settings) -> tuple[GRPOConfig, LoraConfig | None]:
    """GRPOConfig and LoraConfig of the settings; what they refuse becomes one line."""
    check_batches(settings.training, int(os.environ.get("WORLD_SIZE", 1)))
    elsewhere = {
        key: value for key, value in settings.model.items() if key in ("revision", "subfolder", "token", "cache_dir")
    }
    try:
        arguments = GRPOConfig(
            **settings.training,
            reward_weights=[entry["weight"] for entry in settings.rewards.values()],
            trust_remote_code=settings.model.get("trust_remote_code", False),
            model_init_kwargs=elsewhere or None,  # for the reference model, which TRL loads by the policy's name
        )
    except Exception as error:  # ValueError, TypeError, ImportError and more: all about a value of this section
        raise UserError(f"training: {' '.join(str(error).split())}") from error
    try:
        return arguments, LoraConfig(**settings.lora) if settings.lora else None
    except Exception as error:
        raise UserError(f"lora: {' '.join(str(error).split())}") from error


def check_rewards(functions: list, dataset: Dataset) -> None:
    """Call each reward function on two completions with a real row, as strings and as messages; raises UserError."""
    row = dataset[0]
    columns = {key: [value] * 2 for key, value in row.items() if key != "prompt"}
    columns |= {"trainer_state": TrainerState(), "log_extra": lambda *_: None, "log_metric": lambda *_: None}
    texts = ["", "富士山の高さは3776メートルです🗻✨"]
    as_messages = [[{"role": "assistant", "content": text}] for text in texts]
    for function in functions:
        if isinstance(function, str):
            continue
        for completions in (texts, as_messages):
            try:
                result = function(
                    prompts=[row["prompt"]] * 2, completions=completions, completion_ids=[[0], [0, 0]], **columns
                )
                if inspect.isawaitable(result):
                    asyncio.run(result)
            except RewardError as error:
                raise UserError(str(error)) from error


def check_lengths(settings: Settings, config: PreTrainedConfig, arguments: GRPOConfig, dataset: Dataset) -> None:
    """Enough prompts for a first step, and room for prompt and completion in the model's context; raises UserError."""
    needed = arguments.generation_batch_size // arguments.num_generations
    if len(dataset) < needed:
        raise UserError(
            f"training: {len(dataset)} prompts, but one generation batch takes {needed} (generation_batch_size "
            f"{arguments.generation_batch_size} / num_generations {arguments.num_generations}); TRL would save an "
            "untrained model; use more data or smaller batches"
        )
    context = config.get_text_config().max_position_embeddings
    if (settings.prompts.max_length or 0) + arguments.max_completion_length > context:
        raise UserError(
            f"training.max_completion_length: {settings.prompts.max_length or 0} tokens of prompt and "
            f"{arguments.max_completion_length} of completion exceed the model's context of {context}; lower it"
        )


@dataclass
class Footprint:
    """Estimated bytes of a run on each GPU, and of what it leaves on the disk."""

    parameters: int
    trainable: int
    memory: dict[str, float]
    disk: float


def footprint(
    settings: Settings, config: PreTrainedConfig, arguments: GRPOConfig, lora: LoraConfig | None
) -> Footprint:
    """Sizes from the model's shape alone: it is built on the meta device, without weights."""
    dtype = settings.model.get("dtype", "auto")
    dtype = getattr(torch, dtype) if dtype != "auto" else config.dtype or torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=arguments.trust_remote_code)
        if lora is not None:
            try:
                model = get_peft_model(model, lora)
            except Exception as error:  # ValueError: Target modules {...} not found in the base model
                raise UserError(f"lora: {' '.join(str(error).split())[:200]}") from error
    parameters = model.num_parameters() if lora is None else model.base_model.model.num_parameters()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    text = config.get_text_config()
    layers, hidden = text.num_hidden_layers, text.hidden_size
    width = torch.finfo(dtype).bits // 8
    trained_width = 4 if lora is not None else width  # peft keeps adapters in float32
    tokens = (settings.prompts.max_length or 256) + arguments.max_completion_length
    micro_batch = arguments.per_device_train_batch_size
    sampled = micro_batch * arguments.steps_per_generation
    kept = layers * 2 * hidden if arguments.gradient_checkpointing else 0
    per_layer = 16 * hidden + 6 * text.intermediate_size  # bytes a token in bfloat16: attention, norms, MLP
    head_size = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
    memory = {
        "weights": parameters * width,
        "gradients": trainable * trained_width,
        "optimizer": 2 * trainable * trained_width,
        "reference model": parameters * width if arguments.beta and lora is None else 0,
        "activations": micro_batch * tokens * (kept + per_layer * (1 if kept else layers)),
        "logits": 3 * 4 * sampled * text.vocab_size,  # of one sampled token a sequence, in float32, with two copies
        "KV cache": sampled * tokens * layers * 2 * text.num_key_value_heads * head_size * 2,
    }
    saved = trainable * trained_width
    checkpoint = saved * (1 if arguments.save_only_model else 3)
    count = 0 if arguments.save_strategy == "no" else arguments.save_total_limit or 10
    return Footprint(parameters, trainable, memory, saved + checkpoint * (count + (1 if count else 0)))


def check_output(output_dir: str, needed: float) -> None:
    """No run there yet, and room for the model, the checkpoints that save_total_limit keeps, and one being written."""
    folder = Path(output_dir).absolute()
    if any((folder / name).exists() for name in ("trainer_state.json", "samples.jsonl")) or any(
        folder.glob("checkpoint-*")
    ):
        raise UserError(
            f"training.output_dir: {output_dir} already holds a run, which is never overwritten; remove the folder, or "
            "choose another with --training.output_dir"
        )
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"training.output_dir: {needed / GB:.1f} GB are needed for the model and its checkpoints, "
            f"{free / GB:.1f} GB are free in {folder}; free some, lower save_total_limit, or set save_only_model: true"
        )


def reward_preview(settings: Settings, functions: list, dataset: Dataset) -> list[str]:
    """One line a reward: how the data set's own answers score (up to 200 of them), and a warning where it is flat."""
    if "answer" not in dataset.column_names:
        return []
    sample = dataset.select(range(min(200, len(dataset))))
    answers = [str(answer) for answer in sample["answer"]]
    columns = {key: list(sample[key]) for key in sample.column_names if key != "prompt"}
    columns |= {"trainer_state": TrainerState(), "log_extra": lambda *_: None, "log_metric": lambda *_: None}
    lines = []
    for name, function in zip(settings.rewards, functions, strict=True):
        if isinstance(function, str) or "answer" in rewards.columns(rewards.all_rewards()[name]):
            continue  # a reward model's weights are not loaded yet; an answer always contains itself
        scores = function(
            prompts=list(sample["prompt"]), completions=answers, completion_ids=[[0]] * len(answers), **columns
        )
        scores = [
            score for score in (asyncio.run(scores) if inspect.isawaitable(scores) else scores) if score is not None
        ]
        line = f"{name}: {statistics.mean(scores):.2f} on average ({min(scores):.2g} to {max(scores):.2g})"
        low = sum(score < 0.01 for score in scores) / len(scores)
        if max(scores) - min(scores) < 1e-3:
            line += "; warning: flat, all answers score alike"
        elif low > 0.8:
            line += f"; warning: {low:.0%} of answers score below 0.01"
        lines.append(line)
    return lines


def preflight(
    settings: Settings,
    arguments: GRPOConfig,
    lora: LoraConfig | None,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    held_out: Dataset,
    dropped: int,
    reward_functions: list,
    attention: str | None,
    why: str,
) -> None:
    """Check what needs the data and the model's shape, then print what the run is about to do; raises UserError."""
    check_lengths(settings, config, arguments, dataset)
    check_rewards(reward_functions, dataset)
    size = footprint(settings, config, arguments, lora)
    if arguments.process_index:  # the first process looks at the folder before it writes, and prints the plan
        return
    check_output(arguments.output_dir, size.disk)
    world = arguments.world_size
    per_step = arguments.per_device_train_batch_size * world * arguments.gradient_accumulation_steps
    prompts_per_generation = arguments.generation_batch_size // arguments.num_generations
    calls_per_epoch = len(dataset) // prompts_per_generation
    steps_per_call = arguments.generation_batch_size * arguments.num_iterations / per_step
    steps = (
        arguments.max_steps
        if arguments.max_steps > 0
        else math.ceil(arguments.num_train_epochs * calls_per_epoch * steps_per_call)
    )
    calls = math.ceil(steps / steps_per_call)
    dtype = settings.model.get("dtype", "auto")
    trained = "all trained" if size.trainable == size.parameters else f"{size.trainable:,} trained by LoRA"
    rows = [
        (
            "model",
            f"{settings.model['pretrained_model_name_or_path']}: {size.parameters:,} parameters, {trained}, {dtype}",
        ),
        ("attention", f"{attention or 'as the model prefers'}{f' ({why})' if why else ''}"),
        ("prompts", f"{len(dataset):,} to train on, {len(held_out)} held out, {dropped:,} dropped as too long"),
        (
            "first prompt",
            tokenizer.apply_chat_template(dataset[0]["prompt"], add_generation_prompt=True, tokenize=False),
        ),
        (
            "a step",
            f"{per_step / arguments.num_generations:g} prompts x {arguments.num_generations} = {per_step} completions",
        ),
        ("the run", f"{steps:,} optimizer steps, {calls:,} generation calls of {arguments.generation_batch_size}"),
        ("", f"at most {calls * arguments.generation_batch_size * arguments.max_completion_length:,} generated tokens"),
    ]
    for i, (name, entry) in enumerate(settings.rewards.items()):
        details = ", ".join(f"{key} {value}" for key, value in entry.items() if key != "weight")
        rows.append(("" if i else "rewards", f"{entry['weight']:g} x {name}{f' ({details})' if details else ''}"))
    for i, line in enumerate(reward_preview(settings, reward_functions, dataset)):
        rows.append(("" if i else "data's answers", line))
    total = sum(size.memory.values())
    parts = ", ".join(f"{name} {value / GB:.1f}" for name, value in size.memory.items() if value >= 0.05 * GB)
    rows.append(("memory", f"about {total / GB:.1f} GB{f': {parts}' if parts else ''} (estimated)"))
    rows += [("", line) for line in _fit(total, arguments, settings)]
    rows.append(("disk", f"{size.disk / GB:.1f} GB in {arguments.output_dir}"))
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, line in rows:
        table.add_row(Text(name, style="bold"), Text(line.replace("\n", "⏎"), overflow="fold"))
    Console().print(table)


def _fit(needed: float, arguments: GRPOConfig, settings: Settings) -> list[str]:
    if arguments.use_cpu or not torch.cuda.is_available():
        return []
    has = torch.cuda.get_device_properties(0).total_memory
    if needed < 0.95 * has:
        return [f"the GPU has {has / GB:.0f} GB"]
    changes = [] if settings.lora else ["--config recipes/lora.yaml"]
    if not arguments.gradient_checkpointing:
        changes.append("--training.gradient_checkpointing true")
    if arguments.per_device_train_batch_size > 1:
        half, twice = arguments.per_device_train_batch_size // 2, arguments.gradient_accumulation_steps * 2
        changes.append(f"--training.per_device_train_batch_size {half} --training.gradient_accumulation_steps {twice}")
    return [f"warning: the GPU has only {has / GB:.0f} GB; try {', or '.join(changes)}"]


def _value(training: dict[str, Any], name: str) -> Any:
    """The setting, or upstream's default."""
    return training.get(name, GRPOConfig.__dataclass_fields__[name].default)
