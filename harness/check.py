"""Check: what can go wrong goes wrong here, in seconds and in one line; then the plan of the run is printed."""

import math
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub import HfApi
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, TrainerState
from transformers.integrations import get_reporting_integration_callbacks
from trl import GRPOConfig

from harness.checkpoints import first_decides
from harness.exits import ENDS, UserError, one_line
from harness.footprint import (
    GB,
    LOW_BIT,
    Footprint,
    footprint,
    moved_share,
    rounded_away,
    sharding,
    stochastic_rounding,
    weights_dtype,
)
from harness.loading import Data, Policy, loading_problem
from harness.record import completions_a_step
from harness.rewarding import RewardError, details, logged_name, score
from harness.settings import Settings
from harness.watch import GUARDED


def check_machine(settings: Settings) -> None:
    """Can these settings run on this machine at all? Raises UserError."""
    training = settings.training
    if training.get("bf16") and training.get("fp16"):  # as GRPOConfig would, from which --check takes both
        raise settings.error("training.fp16", "cannot be true together with bf16; set one of them to false")
    if settings.model.get("quantization_config") and settings.lora is None:
        raise settings.error("model.quantization_config", "quantized weights are not trained; use recipes/qlora.yaml")
    if settings.options.check and not training.get("use_cpu") and not torch.cuda.is_available():
        return print("machine: no CUDA GPU here, which training needs; this is the plan for a machine that has one")
    if training.get("use_vllm") and find_spec("vllm") is None:
        raise settings.error("training.use_vllm", "vLLM is not installed; run `make gpu`, or set it to false")
    if settings.model.get("quantization_config") and find_spec("bitsandbytes") is None:
        problem = "bitsandbytes is not installed; run `make gpu`, or leave quantization_config out"
        raise settings.error("model.quantization_config", problem)
    if training.get("optim") in LOW_BIT and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        raise settings.error("training.optim", "torchao compiles it, and there is no C compiler here; install gcc")
    if training.get("use_cpu"):
        return
    if not torch.cuda.is_available():
        raise UserError("machine: no CUDA GPU found; `make demo` runs the same code on a laptop")
    if (count := torch.cuda.device_count()) > 1 and "LOCAL_RANK" not in os.environ:
        all_of_them = f"all of them with `python -m harness.launch --num_processes {count} train_grpo.py`"
        one = "one with CUDA_VISIBLE_DEVICES=0"
        raise UserError(f"machine: {count} GPUs are visible to plain python; use {all_of_them}, or {one}")
    no_bf16 = training.get("bf16") is False or training.get("fp16")  # upstream's default is bf16
    if not no_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        problem = f"{torch.cuda.get_device_name()} has no bfloat16; set training.bf16: false and training.fp16: true"
        raise settings.error("training.bf16", f"{problem} (with model.dtype: float32, or LoRA)")


def check_run(
    settings: Settings, args: GRPOConfig, lora: LoraConfig | None, policy: Policy, data: Data, rewards: list
) -> Footprint:
    """Check what needs the arguments, the data and the model's shape, then print what the run is about to do.

    `rewards` are those of build_rewards. Raises UserError.
    """
    check_services(settings, args)
    check_generation(settings, policy)
    check_lengths(settings, policy.config, args, data)
    size = footprint(settings, policy.config, args, lora)
    check_rewards(settings, rewards, data.train)
    if args.process_index == 0:
        print_plan(settings, args, policy, data, size)
    if not settings.options.rehearse:
        first_decides(args, lambda: check_output(settings, args.output_dir, size.disk))
    return size


def check_services(settings: Settings, args: GRPOConfig) -> None:
    """Trackers and the Hub, where they are asked for; raises UserError."""
    os.environ.setdefault("WANDB_PROJECT", args.project)
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except Exception as error:  # ValueError: unknown; RuntimeError: the tracker's package is not installed
        raise settings.error("training.report_to", f"{one_line(error)}; install it, or set none") from error
    if args.push_to_hub:
        try:
            HfApi(token=args.hub_token).whoami()
        except Exception as error:  # no network, no token, a wrong token
            problem = f"the Hub does not let you in ({type(error).__name__}); run `hf auth login`, or set it to false"
            raise settings.error("training.push_to_hub", problem) from error


def check_generation(settings: Settings, policy: Policy) -> None:
    """What upstream would ignore, what contradicts a setting, and what casts the weights; raises UserError."""
    continuous, training = "use_transformers_continuous_batching", settings.training
    casts = training.get(continuous) and training.get("bf16") is not False and not training.get("fp16")
    if casts and (settings.lora or weights_dtype(settings, policy.config) != torch.bfloat16):
        problem = "with bf16 it casts the weights that are trained, or LoRA's, from float32 to bfloat16 for good"
        raise settings.error(f"training.{continuous}", f"{problem}; use it with model.dtype: bfloat16 and without LoRA")
    for key in settings.training.get("generation_kwargs") or {}:
        where = f"training.generation_kwargs.{key}"
        if key in GRPOConfig.__dataclass_fields__:
            raise settings.error(where, f"is a setting of its own; write training.{key} instead")
        if not settings.training.get("use_vllm") and key not in vars(GenerationConfig()):  # vLLM knows others
            raise settings.error(where, "unknown to transformers.GenerationConfig; fix or remove it")


def check_lengths(settings: Settings, config: PreTrainedConfig, args: GRPOConfig, data: Data) -> None:
    """Enough prompts for a first step, something to ask and evaluate by, room in the context; raises UserError."""
    needed = args.generation_batch_size // args.num_generations
    if len(data.train) < needed:
        problem = f"one generation batch takes {needed} prompts (generation_batch_size / num_generations), so nothing "
        remedy = "use more data, smaller batches, or a smaller samples.held_out"
        raise UserError(f"dataset: {data.in_words()}; {problem}would be trained; {remedy}")
    if args.eval_strategy != "no" and not data.held_out:
        raise settings.error("training.eval_strategy", "there is nothing to evaluate on; set samples.held_out")
    if args.eval_on_start and args.eval_strategy == "no":
        raise settings.error("training.eval_on_start", "needs training.eval_strategy; set both or neither")
    if not all(map(str.strip, settings.samples.questions)):
        raise settings.error("samples.questions", "one of them is empty; write a question, or remove it")
    metrics = ["reward", *(f"rewards/{logged_name(name)}/mean" for name in settings.rewards), GUARDED]
    if (metric := args.metric_for_best_model) and metric.removeprefix("eval_") not in metrics:
        problem = f"{metric!r} is no metric of the rewards; choose one of {', '.join(metrics)}"
        raise settings.error("training.metric_for_best_model", problem)
    context = getattr(config.get_text_config(), "max_position_embeddings", math.inf)  # ALiBi has no limit
    if (prompt := int(data.lengths.max())) + args.max_completion_length > context:
        problem = f"{prompt} tokens of prompt and {args.max_completion_length} of completion exceed the model's "
        raise settings.error("training.max_completion_length", f"{problem}context of {context}; lower it")


def check_rewards(settings: Settings, built: list[Callable | str], dataset: Dataset) -> None:
    """Call each reward function once, on two completions of a real row; raises UserError."""
    row = dataset[0]
    others = {key: [value] * 2 for key, value in row.items() if key != "prompt"}
    completions = [[{"role": "assistant", "content": text}] for text in ("", "Yes: 42 ✨")]
    for name, reward in zip(settings.rewards, built, strict=True):
        where = f"rewards.{name}"
        if isinstance(reward, str):
            try:
                AutoConfig.from_pretrained(name, trust_remote_code=False)
            except Exception as error:  # as in load_policy
                raise settings.error(where, loading_problem(name, error)) from error
            continue
        if taken := sorted((set(settings.rewards[name]) - {"weight"}) & set(dataset.column_names)):
            problem = "the data have a column of this name, which TRL would pass instead; rename one of the two"
            raise settings.error(f"{where}.{taken[0]}", f"{problem} (prompts.rename)")
        try:
            score(reward, [row["prompt"]] * 2, completions, others, TrainerState())
        except RewardError as error:
            raise UserError(str(error)) from error


def check_output(settings: Settings, output_dir: str, needed: float) -> None:
    """No run there yet, and room for the model, the checkpoints that save_total_limit keeps, and one being written."""
    folder, key = Path(output_dir).absolute(), "training.output_dir"
    holds_run = any(folder.glob("checkpoint-*")) or (folder / "trainer_state.json").exists()
    if holds_run and not settings.options.resume:
        problem = f"{output_dir} already holds a run, which is never overwritten; go on with it by --resume, remove "
        raise settings.error(key, f"{problem}the folder, or choose another with --training.output_dir")
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise settings.error(key, f"{output_dir} cannot be written (no folder to write to: {there}); choose another")
    if (free := shutil.disk_usage(there).free) < needed:
        problem = f"{needed / 1e6:,.0f} MB are needed for the model and its checkpoints, {free / 1e6:,.0f} MB are free "
        raise settings.error(key, f"{problem}in {folder}; free some, or lower save_total_limit")


def run_length(args: GRPOConfig, prompts: int) -> tuple[int, int]:
    """(optimizer steps, generation calls) of a run over so many prompts."""
    steps_per_call = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
    epoch = prompts // (args.generation_batch_size // args.num_generations) * steps_per_call
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
    return steps, math.ceil(steps / steps_per_call)


def print_plan(settings: Settings, args: GRPOConfig, policy: Policy, data: Data, size: Footprint) -> None:
    """What the run is about to do, as a table that a person reads in ten seconds."""
    group, sampled = args.num_generations, args.generation_batch_size
    per_step = completions_a_step(args)
    steps, calls = run_length(args, len(data.train))
    trained = "all trained" if size.trainable == size.parameters else f"{size.trainable:,} trained by LoRA"
    name, dtype = settings.model["pretrained_model_name_or_path"], settings.model.get("dtype") or "auto"
    attention = policy.attention or "sdpa, where the model has it"
    by = f", {per_step // args.world_size} in each of {args.world_size} processes" if args.world_size > 1 else ""
    template = (args.chat_template_kwargs or {}) | {"add_generation_prompt": True, "tokenize": False}
    first = policy.tokenizer.apply_chat_template(data.train[0]["prompt"], **template)
    rows = [
        ("model", f"{name}: {size.parameters:,} parameters, {trained}, {dtype}"),
        ("attention", f"{attention}{policy.fallback and f' ({policy.fallback})'}"),
        ("prompts", data.in_words()),
        ("first prompt", first),
        ("a step", f"{per_step / group:g} prompts x {group} = {per_step} completions{by}"),
        ("the run", f"{steps:,} optimizer steps, {calls:,} generation calls of {sampled}"),
        ("", f"at most {calls * sampled * args.max_completion_length:,} generated tokens"),
    ]
    for i, (name, entry) in enumerate(settings.rewards.items()):
        rows.append(("" if i else "rewards", f"{entry['weight']:g} x {name}{details(entry)}"))
    rows.append(("", "each function was called once to check it, on two completions"))
    total = sum(size.memory.values())
    parts = ", ".join(f"{name} {value / GB:.1f}" for name, value in size.memory.items() if value >= 0.05 * GB)
    rows.append(("memory", f"about {total / GB:.1f} GB{f': {parts}' if parts else ''} (estimated)"))
    rows += [("", line) for line in _fit(total, settings)]
    rows.append(("disk", f"{size.disk / GB:.1f} GB in {args.output_dir}"))
    rows += [("", f"warning: {doubt}") for doubt in _doubts(args, policy, settings)]
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, line in rows:
        table.add_row(Text(name, style="bold"), Text(line.replace("\n", "⏎"), overflow="fold"))
    Console().print(table)


def _doubts(args: GRPOConfig, policy: Policy, settings: Settings) -> list[str]:
    """Settings that run, and probably learn nothing."""
    doubts = []
    if settings.lora and (rate := args.learning_rate) < 1e-5:
        doubts.append(f"learning_rate {rate:g} is one for all weights; LoRA needs more: recipes/lora.yaml")
    if args.sync_ref_model and not args.beta:
        doubts.append("sync_ref_model has no reference model to sync, as beta is 0")
    dtype = weights_dtype(settings, policy.config)
    if not settings.lora and dtype != torch.float32 and not stochastic_rounding(args) and not any(sharding(args)):
        spread = getattr(policy.config, "initializer_range", 0.02)  # of the weights when their training began
        drawn = torch.randn(10**6, generator=torch.Generator().manual_seed(0)) * spread
        if (share := moved_share([drawn.to(dtype)], args.learning_rate)) < 0.5:
            doubts.append(rounded_away(share))
    if "TORCHELASTIC_RUN_ID" in os.environ and not {ENDS, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"} & set(os.environ):
        doubts.append("this launcher kills a run 30 s after a signal; use python -m harness.launch in its place")
    if args.save_strategy == "no":
        doubts.append("save_strategy is no: a run that is stopped has lost everything")
    return doubts


def _fit(needed: float, settings: Settings) -> list[str]:
    if settings.training.get("use_cpu"):
        return []
    if not torch.cuda.is_available():
        fits = [f"{size} GB {'fits' if needed < 0.95 * size * GB else 'too small'}" for size in (16, 24, 40, 80, 141)]
        return [f"GPUs: {', '.join(fits)}"]
    has = torch.cuda.get_device_properties(0).total_memory
    if needed < 0.95 * has:
        return [f"the GPU has {has / GB:.0f} GB"]
    remedy = "see what fits with --rehearse --fit, or use recipes/lora.yaml"
    return [f"warning: the GPU has only {has / GB:.0f} GB; {remedy}"]
