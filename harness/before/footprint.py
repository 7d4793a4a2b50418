"""Footprint: the memory and disk of a run, from the model's shape alone, and which small steps rounding keeps."""

import os
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl import GRPOConfig

from harness.before.policy import Policy
from harness.errors import one_line
from harness.settings import Settings

GB = 1e9
DIVIDED_FROM = {"weights": 3, "reference model": 3, "gradients": 2, "optimizer": 1}  # from this stage of ZeRO on
LOW_BIT = {"adamw_torch_8bit": 8.25, "adamw_torch_4bit": 4.25}  # bits a value of Adam's state, block scales included


class Footprint(NamedTuple):
    """Estimated: bytes on each GPU, by part; and bytes that a run leaves on the disk."""

    parameters: int
    trainable: int
    memory: dict[str, float]
    disk: float


def footprint(settings: Settings, policy: Policy, args: GRPOConfig, lora: LoraConfig | None) -> Footprint:
    """Sizes from the model's shape alone: it is built on the meta device, without weights."""
    config, dtype = policy.config, policy.dtype()
    unset_hf_deepspeed_config()  # or ZeRO-3 would divide a model that has no weights
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=args.trust_remote_code)
        parameters = model.num_parameters()
        try:
            model = get_peft_model(model, lora) if lora else model
        except Exception as error:  # ValueError: Target modules {...} not found in the base model
            raise settings.error("lora", one_line(error)) from error
    if args.deepspeed_plugin:
        set_hf_deepspeed_config(args.deepspeed_plugin.dschf)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fsdp, zero = sharding(args)
    text = config.get_text_config()
    layers, hidden = text.num_hidden_layers, text.hidden_size
    width = torch.finfo(dtype).bits // 8
    # Not of `args`, from which --check takes bf16 where there is no GPU.
    mixed = settings.training.get("bf16") is not False or settings.training.get("fp16")
    trained_width = 4 if lora or (fsdp and mixed) else width  # in which peft and FSDP2 keep what is trained
    state_width = LOW_BIT.get(args.optim, 8 * trained_width) / 8
    embeddings = text.vocab_size * hidden  # these stay as they are where the rest is quantized
    quantized = (settings.model.get("quantization_config") or {}).get("load_in_4bit")
    weights = embeddings * width + (parameters - embeddings) * 0.52 if quantized else parameters * width
    tokens = (settings.prompts.max_length or 256) + args.max_completion_length
    micro_batch = args.per_device_train_batch_size
    sampled = micro_batch * args.steps_per_generation
    kept = layers * 2 * hidden if args.gradient_checkpointing else 0
    # GPT-2 and its like do not say what is usual: an MLP of four times the width, a key for each query. Mamba has none.
    mlp = getattr(text, "intermediate_size", None) or 4 * hidden
    per_layer = 16 * hidden + 6 * mlp  # bytes a token in bfloat16: attention, norms, MLP
    heads = getattr(text, "num_attention_heads", 0)
    head_size = getattr(text, "head_dim", None) or hidden // (heads or 1)
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    memory = {
        "weights": weights if lora else parameters * trained_width,
        "gradients": trainable * trained_width,
        # ZeRO's state is in float32, with the weights once more.
        "optimizer": trainable * (12 if zero and mixed else 2 * state_width),
        "reference model": parameters * width if args.beta and not lora else 0,
        "weights gathered to sample": parameters * width if zero == 3 and not args.use_vllm else 0,
        "activations": micro_batch * tokens * (kept + per_layer * (1 if kept else layers)),
        "logits": 3 * 4 * sampled * text.vocab_size,  # of one sampled token a sequence, in float32, with two copies
        "KV cache": sampled * tokens * layers * 2 * key_heads * head_size * 2,
    }
    for name, stage in DIVIDED_FROM.items():
        memory[name] /= args.world_size if fsdp or zero >= stage else 1
    saved = trainable * trained_width
    checkpoint = saved + (0 if args.save_only_model else 2 * trainable * state_width)
    count = 0 if args.save_strategy == "no" else (args.save_total_limit or 10) + 1  # and the one being written
    return Footprint(parameters, trainable, memory, saved + checkpoint * count)


def sharding(args: GRPOConfig) -> tuple[bool, int]:
    """(whether FSDP divides the model over the processes, DeepSpeed's ZeRO stage or 0), as the launcher has chosen."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return fsdp, args.deepspeed_plugin.zero_stage if args.deepspeed_plugin else 0


def moved_share(weights: list[torch.Tensor], learning_rate: float) -> float:
    """The share of weights that change, in their dtype, when the learning rate is added, as a step of Adam does."""
    moved = sum(int((weight.detach() + learning_rate != weight).sum()) for weight in weights)
    return moved / sum(weight.numel() for weight in weights)


def stochastic_rounding(args: GRPOConfig) -> bool:
    """Whether bfloat16 weights are rounded up or down by chance (torchao), so that small steps are kept on average."""
    return args.optim in LOW_BIT and "bf16_stochastic_round=true" in (args.optim_args or "").lower().replace(" ", "")


def rounded_away(share: float) -> str:
    """What moved_share means, in words."""
    return f"a step moves {share:.0%} of the weights, the rest round back; recipes/24gb.yaml keeps small steps"
