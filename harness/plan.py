"""The plan: what a run is about to do, what it will hold in memory and on disk, and how the rewards look from here."""

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, PreTrainedConfig, TrainerState
from trl import GRPOConfig

import rewards
from harness.data import Data
from harness.exits import UserError
from harness.guard import score
from harness.models import Policy
from harness.settings import Settings

if TYPE_CHECKING:
    from peft import LoraConfig

GB = 1e9


@dataclass
class Footprint:
    """Estimated bytes of a run on each GPU, and of what it leaves on the disk."""

    parameters: int
    trainable: int
    memory: dict[str, float]
    disk: float


def footprint(
    settings: Settings, config: PreTrainedConfig, arguments: GRPOConfig, lora: "LoraConfig | None"
) -> Footprint:
    """Sizes from the model's shape alone: it is built on the meta device, without weights."""
    dtype = weights_dtype(settings, config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=arguments.trust_remote_code)
        if lora is not None:
            from peft import get_peft_model  # not needed without LoRA

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


def weights_dtype(settings: Settings, config: PreTrainedConfig) -> torch.dtype:
    """What model.dtype comes to: `auto`, or nothing, is the type that the model was saved in."""
    dtype = settings.model.get("dtype") or "auto"
    return config.dtype or torch.float32 if dtype == "auto" else getattr(torch, dtype)


def reward_preview(settings: Settings, functions: list, dataset: Dataset) -> list[str]:
    """One line a reward: how the data set's own answers score (up to 200 of them), and a warning where it is flat."""
    if "answer" not in dataset.column_names:
        return []
    sample = dataset.select(range(min(200, len(dataset))))
    answers = [str(answer or "") for answer in sample["answer"]]
    columns = {key: list(sample[key]) for key in sample.column_names if key != "prompt"}
    lines = []
    for name, function in zip(settings.rewards, functions, strict=True):
        if isinstance(function, str):
            continue  # a reward model's weights are not loaded yet
        scores = score(function, list(sample["prompt"]), answers, columns, TrainerState())
        scores = [value for value in scores if value is not None]
        if not scores or "answer" in rewards.columns(rewards.all_rewards()[name]):
            continue  # an answer always contains itself
        line = f"{name}: {statistics.mean(scores):.2f} on average ({min(scores):.2g} to {max(scores):.2g})"
        low = sum(value < 0.01 for value in scores) / len(scores)
        if max(scores) - min(scores) < 1e-3:
            line += "; warning: flat, all answers score alike"
        elif low > 0.8:
            line += f"; warning: {low:.0%} of answers score below 0.01"
        lines.append(line)
    return lines


def print_plan(
    settings: Settings, arguments: GRPOConfig, policy: Policy, data: Data, functions: list, size: Footprint
) -> None:
    """What the run is about to do, as a table that a person reads in ten seconds."""
    group, sampled = arguments.num_generations, arguments.generation_batch_size
    per_step = arguments.per_device_train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    steps_per_call = sampled * arguments.num_iterations / per_step
    epoch = len(data.train) // (sampled // group) * steps_per_call
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * epoch)
    calls = math.ceil(steps / steps_per_call)
    trained = "all trained" if size.trainable == size.parameters else f"{size.trainable:,} trained by LoRA"
    name, dtype = settings.model["pretrained_model_name_or_path"], settings.model.get("dtype") or "auto"
    first = policy.tokenizer.apply_chat_template(data.train[0]["prompt"], add_generation_prompt=True, tokenize=False)
    rows = [
        ("model", f"{name}: {size.parameters:,} parameters, {trained}, {dtype}"),
        ("attention", f"{policy.attention or 'as the model prefers'}{policy.fallback and f' ({policy.fallback})'}"),
        (
            "prompts",
            f"{len(data.train):,} to train on, {len(data.held_out)} held out, {data.dropped:,} dropped (too long)",
        ),
        ("first prompt", first),
        ("a step", f"{per_step / group:g} prompts x {group} = {per_step} completions"),
        ("the run", f"{steps:,} optimizer steps, {calls:,} generation calls of {sampled}"),
        ("", f"at most {calls * sampled * arguments.max_completion_length:,} generated tokens"),
    ]
    for i, (name, entry) in enumerate(settings.rewards.items()):
        details = ", ".join(f"{key} {value}" for key, value in entry.items() if key != "weight")
        rows.append(("" if i else "rewards", f"{entry['weight']:g} x {name}{f' ({details})' if details else ''}"))
    for i, line in enumerate(reward_preview(settings, functions, data.train)):
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
