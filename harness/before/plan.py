"""Plan: what a run will come to, calculated once, before it: steps, memory, disk, and what is doubtful about it.

First the arithmetic, then the doubts, then how all of it is printed.
"""

import math
import os
import re
from dataclasses import dataclass

import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import TrainerState
from trl import GRPOConfig

from harness.before.data import Data, prompt_text
from harness.before.footprint import GB, LOW_BIT, footprint, rounds_by_chance, sharding
from harness.before.policy import Policy, eos_token_ids
from harness.errors import counted, one_line
from harness.keys import FEWEST, FULL
from harness.processes import launched
from harness.reward import Reward
from harness.settings import Settings

HELD = 2e-5  # the highest learning rate, of all weights, with which a real model was seen to keep its answers
LEAST = 1e-5  # learning rate x steps below which a run is too short: 50 steps of 1e-6 taught SmolLM2-135M a little
LEAST_OF_LORA = 1e-5  # a learning rate below it is one for all weights
GPUS = (16, 24, 40, 80, 141)  # GB
# Of a model's generation_config.json, what TRL sets in its place, and what changes no token.
OVERRIDDEN = re.compile(
    "(bos|eos|pad)_token_id|do_sample|max_length|max_new_tokens"
    "|_from_model_config|cache_implementation|transformers_version|use_cache"
)


@dataclass
class Plan:
    """What a run is made of, and what it will come to, as far as that can be calculated.

    `steps`: optimizer steps. `calls`: how often completions are sampled, each time for `prompts_a_batch` prompts, which
    are trained on for `steps_per_call` optimizer steps. Of one step, in all processes: `completions_a_step` are trained
    on, and `questions_a_step` are asked, which are fewer where num_iterations trains on the same ones again.
    `size`: its Footprint. `compiled`: whether sampling is, in words. `doubts`: what may go wrong with it; of these
    `too_slow`: why it will probably learn nothing. `cheats`: what of the rewards can be gamed.
    """

    settings: Settings
    args: GRPOConfig
    lora: LoraConfig | None
    policy: Policy
    data: Data
    rewards: list[Reward]
    compiled: str

    def __post_init__(self):
        args = self.args
        self.prompts_a_batch = args.generation_batch_size // args.num_generations
        self.steps_per_call = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
        self.completions_a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.questions_a_step = self.prompts_a_batch / self.steps_per_call
        batches = len(self.data.train) // self.prompts_a_batch
        self.steps_an_epoch = math.ceil(batches * self.steps_per_call)  # as upstream rounds, epoch by epoch
        self.steps = args.max_steps
        if args.max_steps < 0:
            self.steps = math.ceil(args.num_train_epochs * self.steps_an_epoch)
        self.calls = math.ceil(self.steps / self.steps_per_call)

        longest = self.settings.prompts.max_length or self.data.longest
        self.size = footprint(self.settings, self.policy, args, self.lora, longest)

        self.too_slow = too_slow(self)
        self.doubts = self.too_slow + doubts(self)
        self.cheats = []  # known when the rewards have been asked

    def state(self) -> TrainerState:
        """As a reward gets it before the first step."""
        state = TrainerState(max_steps=self.steps, num_train_epochs=math.ceil(self.steps / self.steps_an_epoch))
        state.compute_steps(self.args, self.steps)
        return state

    def show(self) -> None:
        """Print it as a table that a person reads in ten seconds; with --check also what it comes to."""
        rows = [*_what_is_trained(self), *_how_it_is_trained(self), *_what_it_takes(self)]
        for doubt in [*self.doubts, *doubts_of_template(self)]:
            rows.append(("", f"warning: {doubt}"))
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, line in rows:
            table.add_row(Text(name, style="bold"), Text(line.replace("\n", "⏎"), overflow="fold"))
        Console().print(table)
        for note in self.cheats:
            print(f"cheats: {note}")
        warnings = len(self.cheats) + sum(line.startswith("warning: ") for _, line in rows)
        if self.settings.options.check:
            where = "" if torch.cuda.is_available() or self.settings.training.get("use_cpu") else " on a CUDA GPU"
            found = f"{counted(warnings, 'warning')} above" if warnings else "nothing found against it"
            print(f"{found}; the same command without --check starts it{where}")


# ---- doubts


def too_slow(plan: Plan) -> list[str]:
    """Settings with which a step is too small to count."""
    args, dtype = plan.args, plan.policy.dtype
    if plan.lora:
        if args.learning_rate >= LEAST_OF_LORA:
            return []
        return [f"learning_rate {args.learning_rate:g} is one for all weights; LoRA needs more: recipes/lora.yaml"]
    by_chance = args.optim in LOW_BIT and rounds_by_chance(args)
    if by_chance or any(sharding(args)):
        return []
    if args.learning_rate >= 0.005 * torch.finfo(dtype).eps:  # it moves half of weights drawn from N(0, 0.02)
        return []
    return [
        f"in {_dtype_name(dtype)} most weights round back to what they were before a step of this learning_rate, "
        "and little may be learned; config.yaml's optim and optim_args keep small steps"
    ]


def doubts(plan: Plan) -> list[str]:
    """Settings that run, and probably learn nothing, or lose it."""
    args, found = plan.args, []
    rate = args.learning_rate
    if not plan.lora and plan.size.parameters > 50e6 and rate > HELD:
        found.append(
            f"learning_rate {rate:g} may destroy a model whose weights are all trained: "
            f"SmolLM2-135M held {HELD:g}, and was destroyed within four steps at 6e-4"
        )
    if not plan.lora and rate and plan.steps * rate < LEAST:
        found.append(
            f"next to nothing is learned in {counted(plan.steps, 'optimizer step')} at learning_rate {rate:g}; "
            "take more, or a higher one (recipes/cpu.yaml)"
        )
    if args.use_vllm:
        found += _biased_sampling(plan)
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and not launched()
    if by_torchrun and "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in os.environ:
        found.append("this launcher kills a run 30 s after a signal; use python -m harness launch in its place")
    held_out = len(plan.data.held_out)
    if held_out < FULL:
        interval = "a wide interval" if held_out >= FEWEST else "no verdict"
        found.append(
            f"samples.held_out: {counted(held_out, 'question')}, so {interval} (32 rows hold out 8, 256 rows 64)"
        )
    for reward in plan.rewards:
        for column in reward.columns:
            empty = sum(value in (None, "", []) for value in plan.data.train[column][:])
            if empty:
                found.append(f"{column}, which {reward.name} asks for, is empty in {counted(empty, 'row')}")
    if args.save_strategy == "no":
        found.append("save_strategy is no: a run that is stopped has lost everything")
    return found


def doubts_of_template(plan: Plan) -> list[str]:
    """What the chat template writes after the first question and an answer, where it is not what is expected."""
    found = []
    tokenizer = plan.policy.tokenizer
    turns = plan.data.train[0]["prompt"]
    answer = {"role": "assistant", "content": "ANSWER"}
    text = prompt_text([*turns, answer], tokenizer, plan.args.chat_template_kwargs or {})
    behind = text.rpartition("ANSWER")[2].strip()  # the end of the answer, and the beginning of the next
    stops = tokenizer.convert_ids_to_tokens(eos_token_ids(plan.policy.generation, tokenizer))
    end = [*tokenizer.tokenize(behind), *stops, "nothing"][0]
    if end not in stops:
        found.append(f"the chat template ends an answer by {end}, but sampling stops at {', '.join(stops)}")
    if end in turns[-1]["content"]:
        found.append(f"{end} is in the first question: was the chat template applied before? it is now")
    thinking = [reward.name for reward in plan.rewards if "think" in reward.name + reward.title]
    if thinking and behind.endswith("<think>"):
        found.append(f"{thinking[0]} gets completions without their <think>, which the chat template writes")
    return found


def _biased_sampling(plan: Plan) -> list[str]:
    """Why vLLM's samples are not the policy's, though TRL corrects for what differs by rounding."""
    args, found = plan.args, []
    if args.top_p < 1 or args.top_k > 0 or args.min_p:
        found.append(
            "vLLM with top_p, top_k or min_p: its log-probabilities are of the tokens that are left, "
            "the policy's of all: a biased correction"
        )
    if plan.lora and plan.settings.model.get("quantization_config"):
        found.append("vLLM gets LoRA merged into 4-bit weights, and rounded again: a slightly other policy")
    elif plan.lora and plan.policy.dtype != torch.float32:
        found.append(f"vLLM gets LoRA merged in {_dtype_name(plan.policy.dtype)}, which rounds small changes away")
    return found


# ---- the table: (name, line) of each row


def _what_is_trained(plan: Plan) -> list[tuple[str, str]]:
    policy, row = plan.policy, plan.data.train[0]
    trained = "all trained"
    if plan.size.trainable != plan.size.parameters:
        trained = f"{plan.size.trainable:,} trained with LoRA"
    model = plan.settings.model["pretrained_model_name_or_path"]
    attention = policy.keywords["attn_implementation"] or "sdpa, where the model has it"
    if policy.fallback:
        attention += f" ({policy.fallback})"
    columns = []
    for column, value in row.items():
        if column != "prompt":
            columns.append(f"{column} {one_line(repr(value), most=40)} ({type(value).__name__})")  # as a reward gets it
    return [
        ("model", f"{model}: {plan.size.parameters:,} parameters, {trained}, {_dtype_name(policy.dtype)}"),
        ("attention", attention),
        ("prompts", plan.data.in_words()),
        ("first prompt", prompt_text(row["prompt"], policy.tokenizer, plan.args.chat_template_kwargs or {})),
        ("its columns", ", ".join(columns)),
    ]


def _how_it_is_trained(plan: Plan) -> list[tuple[str, str]]:
    args = plan.args
    completions, group = plan.completions_a_step, args.num_generations
    step = f"{counted(completions / group, 'prompt')} x {group} = {completions} completions"
    if args.world_size > 1:
        step += f", {completions // args.world_size} in each of {args.world_size} processes"
    if plan.settings.options.placebo:
        step += ", placebo: rewards shuffled within each group"
    sampling = f"temperature {args.temperature:g}"
    if args.top_p < 1:
        sampling += f", top_p {args.top_p:g}"
    sampling += f", {args.max_completion_length} tokens at most"
    ours = vars(args) | (args.generation_kwargs or {})
    for name, value in plan.policy.generation.to_diff_dict().items():
        if value and not OVERRIDDEN.fullmatch(name) and ours.get(name) is None:
            sampling += f", {name} {value} (generation_config.json)"
    if plan.compiled:
        sampling += f", {plan.compiled}"
    schedule = f"{args.lr_scheduler_type.value}, {args.optim.value}"
    warm_up = args.get_warmup_steps(plan.steps)
    if warm_up:
        schedule += f" after {counted(warm_up, 'step')} of warm-up"
    kl = "beta 0: no reference model, no KL"
    if args.beta:
        kl = f"beta {args.beta:g} (the KL coefficient)"
    rows = [
        ("per step", step),
        (
            "the run",
            f"{counted(plan.steps, 'optimizer step')}; "
            f"{args.generation_batch_size} completions are sampled at a time, {counted(plan.calls, 'time')}",
        ),
        ("sampling", sampling),
        ("learning", f"learning_rate {args.learning_rate:g}, {schedule}; loss {args.loss_type}, {kl}"),
    ]
    name = "rewards"
    for reward in plan.rewards:
        rows.append((name, f"{reward.weight:g} x {reward}"))
        name = ""
    return rows


def _what_it_takes(plan: Plan) -> list[tuple[str, str]]:
    total = sum(plan.size.memory.values())
    parts = [f"{part} {value / GB:.1f}" for part, value in plan.size.memory.items() if value > GB / 20]
    memory = f"about {total / GB:.1f} GB (estimated)"
    if plan.size.uncounted:
        memory = f"roughly {total / GB:.1f} GB (its layers are taken for a Llama's: {plan.size.uncounted})"
    rows = [("memory", memory)]
    if parts:
        rows.append(("", ", ".join(parts)))
    if not plan.settings.training.get("use_cpu"):
        rows.append(("", _which_gpus(total)))
    return [*rows, ("disk", f"{plan.size.disk / GB:.3g} GB in {plan.args.output_dir}")]


def _which_gpus(needed: float) -> str:
    if not torch.cuda.is_available():
        for size in GPUS:
            if needed < 0.9 * size * GB:
                return f"fits a {size} GB GPU"
        return f"fits no GPU up to {GPUS[-1]} GB"
    has = torch.cuda.get_device_properties(0).total_memory
    if needed < 0.9 * has:
        return f"the GPU has {has / GB:.0f} GB"
    remedy = "see what fits with --rehearse, or use recipes/lora.yaml"
    return f"warning: the GPU has only {has / GB:.0f} GB; {remedy}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
