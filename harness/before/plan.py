"""Plan: what a run will come to, calculated once, before it: steps, memory, disk, and what is doubtful about it."""

import math
import os
from typing import Any

import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from trl import GRPOConfig

from harness.before.data import Data
from harness.before.footprint import GB, footprint, moved_share, rounded_away, sharding, stochastic_rounding
from harness.before.policy import Policy
from harness.processes import ENDS
from harness.reward import Reward
from harness.settings import Settings

HELD = 2e-5  # the highest learning rate, of all weights, with which a real model was seen to keep its answers
LEAST = 1e-5  # learning rate x steps below which a run is too short: 50 steps of 1e-6 taught SmolLM2-135M a little


class Plan:
    """What a run is made of, and what it will come to, as far as that can be calculated.

    `steps`, `calls`: optimizer steps; generation calls, each of `prompts_a_batch` prompts. `completions_a_step`: of one
    optimizer step, in all processes. `memory`, `disk`: estimated bytes on each GPU, by part; and of what the run
    leaves. `doubts`: what may go wrong with it; of these `too_slow`: why it will probably learn nothing.
    """

    def __init__(
        self,
        settings: Settings,
        args: GRPOConfig,
        lora: LoraConfig | None,
        policy: Policy,
        data: Data,
        rewards: list[Reward],
    ):
        self.settings, self.args, self.lora = settings, args, lora
        self.policy, self.data, self.rewards = policy, data, rewards
        steps_per_call = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
        self.prompts_a_batch = args.generation_batch_size // args.num_generations
        self.completions_a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        epoch = len(data.train) // self.prompts_a_batch * steps_per_call
        self.steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
        self.calls = math.ceil(self.steps / steps_per_call)
        self.parameters, self.trainable, self.memory, self.disk = footprint(settings, policy, args, lora)
        self.too_slow = self._too_slow()
        self.doubts = self.too_slow + self._doubts()

    def show(self) -> None:
        """Print it as a table that a person reads in ten seconds."""
        args, model = self.args, self.settings.model
        group, sampled, per_step = args.num_generations, args.generation_batch_size, self.completions_a_step
        trained = "all trained" if self.trainable == self.parameters else f"{self.trainable:,} trained by LoRA"
        name, dtype = model["pretrained_model_name_or_path"], model.get("dtype") or "auto"
        attention = self.policy.keywords["attn_implementation"] or "sdpa, where the model has it"
        attention += ", without cuDNN's kernels" if "sdpa" in attention and torch.cuda.is_available() else ""
        by = f", {per_step // args.world_size} in each of {args.world_size} processes" if args.world_size > 1 else ""
        template = (args.chat_template_kwargs or {}) | {"add_generation_prompt": True, "tokenize": False}
        first = self.policy.tokenizer.apply_chat_template(self.data.train[0]["prompt"], **template)
        rows = [
            ("model", f"{name}: {self.parameters:,} parameters, {trained}, {dtype}"),
            ("attention", f"{attention}{self.policy.fallback and f' ({self.policy.fallback})'}"),
            ("prompts", self.data.in_words()),
            ("first prompt", first),
            (
                "its columns",
                ", ".join(_in_words(*column) for column in self.data.train[0].items() if column[0] != "prompt"),
            ),
            ("a step", f"{per_step / group:g} prompts x {group} = {per_step} completions{by}"),
            (
                "the run",
                f"{self.steps:,} optimizer steps; {sampled} completions are sampled at a time, {self.calls:,} times",
            ),
            ("", f"at most {self.calls * sampled * args.max_completion_length:,} generated tokens"),
        ]
        more = f", top_p {args.top_p:g}" if args.top_p < 1 else ""
        rows.append(
            ("sampling", f"temperature {args.temperature:g}{more}, {args.max_completion_length} tokens at most")
        )
        kl = f"beta {args.beta:g} (the weight of the KL)" if args.beta else "beta 0: no reference model, no KL"
        warm_up = args.get_warmup_steps(self.steps)
        schedule = args.lr_scheduler_type.value + (f" after {warm_up} steps of warm-up" if warm_up else "")
        rows.append(("learning", f"learning_rate {args.learning_rate:g}, {schedule}; loss {args.loss_type}, {kl}"))
        for i, reward in enumerate(self.rewards):
            rows.append(("" if i else "rewards", f"{reward.weight:g} x {reward}"))
        rows.append(("", "each function was called once to check it, on two completions"))
        total = sum(self.memory.values())
        parts = {name: round(value / GB, 1) for name, value in self.memory.items()}
        parts["other"] = round(total / GB - sum(parts.values()), 1)
        shown = ", ".join(f"{name} {value}" for name, value in parts.items() if value > 0)
        rows.append(("memory", f"about {total / GB:.1f} GB{f': {shown}' if shown else ''} (estimated)"))
        rows += [("", line) for line in self._which_gpus(total)]
        rows.append(("disk", f"{self.disk / GB:.1f} GB in {args.output_dir}"))
        rows += [("", f"warning: {doubt}") for doubt in self.doubts]
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, line in rows:
            table.add_row(Text(name, style="bold"), Text(line.replace("\n", "⏎"), overflow="fold"))
        Console().print(table)

    def _too_slow(self) -> list[str]:
        """Settings with which a step is too small to count."""
        args, dtype = self.args, self.policy.dtype()
        if self.lora:
            words = f"learning_rate {args.learning_rate:g} is one for all weights; LoRA needs more: recipes/lora.yaml"
            return [words] if args.learning_rate < 1e-5 else []
        if dtype == torch.float32 or stochastic_rounding(args) or any(sharding(args)):
            return []
        spread = getattr(self.policy.config, "initializer_range", 0.02)  # of the weights when their training began
        drawn = torch.randn(10**6, generator=torch.Generator().manual_seed(0)) * spread
        share = moved_share([drawn.to(dtype)], args.learning_rate)
        return [rounded_away(share)] if share < 0.5 else []

    def _doubts(self) -> list[str]:
        """Settings that run, and probably learn nothing."""
        args, doubts = self.args, []
        if not self.lora and self.parameters > 50e6 and args.learning_rate > HELD:
            measured = f"SmolLM2-135M held {HELD:g}, and was destroyed within four steps at 6e-4"
            doubts.append(
                f"learning_rate {args.learning_rate:g} may destroy a model whose weights are all trained: {measured}"
            )
        if not self.lora and args.learning_rate and self.steps * args.learning_rate < LEAST:
            few = f"{self.steps:,} optimizer steps at learning_rate {args.learning_rate:g} teach next to nothing"
            rate = math.ceil(round(LEAST / args.learning_rate, 6))
            doubts.append(
                f"{few}: train {rate:,} (num_train_epochs, max_steps), or raise learning_rate; see recipes/cpu.yaml"
            )
        doubts += self._biased_sampling() if args.use_vllm else []
        if "TORCHELASTIC_RUN_ID" in os.environ and not {ENDS, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"} & set(os.environ):
            doubts.append("this launcher kills a run 30 s after a signal; use python -m harness launch in its place")
        if args.save_strategy == "no":
            doubts.append("save_strategy is no: a run that is stopped has lost everything")
        return doubts

    def _biased_sampling(self) -> list[str]:
        """Why vLLM's samples are not the policy's, though TRL corrects for what differs by rounding."""
        args, doubts = self.args, []
        cut = {"top_p": args.top_p < 1, "top_k": args.top_k > 0, "min_p": bool(args.min_p)}
        if names := [name for name, on in cut.items() if on]:
            problem = "vLLM's log-probabilities are of the tokens that are left, the policy's are of all"
            doubts.append(
                f"{' and '.join(names)} with vLLM: {problem}, so the correction for their difference is biased"
            )
        if self.lora and (self.settings.model.get("quantization_config") or {}):
            doubts.append(
                "vLLM gets LoRA merged into 4-bit weights, and rounded again: it samples from a slightly other policy"
            )
        elif self.lora and self.policy.dtype() != torch.float32:
            doubts.append(f"vLLM gets LoRA merged in {str(self.policy.dtype())[6:]}, which rounds small changes away")
        return doubts

    def _which_gpus(self, needed: float) -> list[str]:
        if self.settings.training.get("use_cpu"):
            return []
        if not torch.cuda.is_available():
            fits = {size: "fits" if needed < 0.9 * size * GB else "too small" for size in (16, 24, 40, 80, 141)}
            return ["GPUs: " + ", ".join(f"{size} GB {words}" for size, words in fits.items())]
        has = torch.cuda.get_device_properties(0).total_memory
        if needed < 0.9 * has:
            return [f"the GPU has {has / GB:.0f} GB"]
        remedy = "see what fits with --rehearse, or use recipes/lora.yaml"
        return [f"warning: the GPU has only {has / GB:.0f} GB; {remedy}"]


def _in_words(column: str, value: Any) -> str:
    """`answer '3776' (str)`: as a reward gets it."""
    short = repr(value)
    return f"{column} {short if len(short) <= 40 else short[:37] + '...'} ({type(value).__name__})"
