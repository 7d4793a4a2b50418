"""Footprint: the memory and disk of a run, from the model's shape alone, and which small steps rounding keeps."""

import copy
import logging
import os
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl import GRPOConfig

from harness.before.policy import Policy
from harness.errors import one_line
from harness.settings import Settings

GB = 1e9
DIVIDED_FROM = {"weights": 3, "reference model": 3, "gradients": 2, "optimizer": 1}  # from this stage of ZeRO on
CUDA_CONTEXT = 0.9 * GB  # what a process takes of a GPU beside its tensors; seen on an H200
HEAD_TILE = 4096, 32_768  # tokens x vocabulary: the part of the logits that TRL computes at a time
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
    # Not of `args`, from which --check takes these where there is no GPU.
    half = torch.float16 if settings.training.get("fp16") else torch.bfloat16
    mixed = settings.training.get("bf16") is not False or half == torch.float16
    trained_width = 4 if lora or (fsdp and mixed) else width  # in which peft and FSDP2 keep what is trained
    state_width = LOW_BIT.get(args.optim, 8 * trained_width) / 8
    embeddings = text.vocab_size * hidden  # these stay as they are where the rest is quantized
    quantized = (settings.model.get("quantization_config") or {}).get("load_in_4bit")
    weights = embeddings * width + (parameters - embeddings) * 0.52 if quantized else parameters * width
    tokens = (settings.prompts.max_length or 256) + args.max_completion_length
    micro_batch = args.per_device_train_batch_size
    sampled = micro_batch * args.steps_per_generation
    heads = getattr(text, "num_attention_heads", 0)  # Mamba has none
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    head_size = getattr(text, "head_dim", None) or hidden // (heads or 1)
    memory = {
        "weights": weights if lora else parameters * trained_width,
        "gradients": trainable * trained_width,
        # ZeRO's state is in float32, with the weights once more.
        "optimizer": trainable * (12 if zero and mixed else 2 * state_width),
        "reference model": parameters * width if args.beta and not lora else 0,
        "weights gathered to sample": parameters * width if zero == 3 and not args.use_vllm else 0,
        "activations": _activations(policy, args, lora, (micro_batch, tokens), half if mixed else None),
        "CUDA context": 0 if settings.training.get("use_cpu") else CUDA_CONTEXT,
    }
    # While it samples there are no gradients; of the logits there is one token a row, in float32, with two copies.
    cache = 0 if args.use_vllm else sampled * tokens * layers * 2 * key_heads * head_size * 2
    cache += 0 if args.use_vllm else 3 * 4 * sampled * text.vocab_size
    memory["sampling, beyond these"] = max(0, cache - memory["gradients"] - memory["activations"])
    for name, stage in DIVIDED_FROM.items():
        memory[name] /= args.world_size if fsdp or zero >= stage else 1
    saved = trainable * trained_width
    checkpoint = saved + (0 if args.save_only_model else 2 * trainable * state_width)
    count = 0 if args.save_strategy == "no" else (args.save_total_limit or 10) + 1  # and the one being written
    return Footprint(parameters, trainable, memory, saved + checkpoint * count)


def _activations(
    policy: Policy, args: GRPOConfig, lora: LoraConfig | None, shape: tuple[int, int], cast: torch.dtype | None
) -> float:
    """Bytes that a micro-batch of `shape`, (rows, tokens), takes at most; products are computed in `cast`, if any."""
    text, dtype = policy.config.get_text_config(), policy.dtype()
    layers, hidden, width = text.num_hidden_layers, text.hidden_size, torch.finfo(dtype).bits // 8
    (rows, tokens), half = shape, 2 if cast else width
    for padded in (True, False):  # a mask as of padded rows, where the model takes one with four dimensions
        try:
            one, two = (_kept(policy, args, lora, shape, cast, layers=n, padded=padded) for n in (1, 2))
            break
        except Exception:  # of many kinds: a model without attention, or one whose way depends on its values
            mlp = getattr(text, "intermediate_size", None) or 4 * hidden  # GPT-2 and its like do not say what is usual
            one, two = (n * rows * tokens * (24 * hidden + 8 * mlp) for n in (1, 2))  # as a Llama's
    head = 4 * rows * tokens * hidden + half * min(rows * args.max_completion_length, HEAD_TILE[0]) * HEAD_TILE[1]
    if not lora:  # the gradient of the head is summed in float32
        head += text.vocab_size * hidden * (4 + (width if width < 4 else 0))
    if args.gradient_checkpointing:
        return layers * rows * tokens * hidden * width + max(head, one)
    return one + (layers - 1) * (two - one) + head


def _kept(policy, args, lora, shape, cast, layers: int, padded: bool) -> int:
    """Bytes that so many layers keep for the backward pass, as PyTorch itself keeps them: of tensors without values."""
    config, held = copy.deepcopy(policy.config.get_text_config()), {}
    config.num_hidden_layers = layers
    for name, value in vars(config).items():
        if "att" in name and "drop" in name:  # with it a CPU keeps the whole matrix of attention, a GPU does not
            setattr(config, name, 0.0)
        elif name == "layer_types" and value:
            setattr(config, name, value[:layers])
    attention = policy.keywords.get("attn_implementation")
    logging.getLogger("torch._subclasses.fake_tensor").disabled = True  # what goes wrong there is dealt with here
    flash = bool(attention) and attention not in ("sdpa", "eager")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(
            config, dtype=policy.dtype(), attn_implementation=None if flash else attention,
            trust_remote_code=args.trust_remote_code,
        )  # fmt: skip
        body = model.base_model.train()
        get_peft_model(model, lora) if lora else None  # in place
        weights = {id(tensor.untyped_storage()) for tensor in body.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if id(storage) not in weights:
                held[id(storage)] = storage  # kept, or the next one could have its address
            return tensor

        mask = torch.ones(shape[0], 1, shape[1], shape[1], dtype=torch.bool) if padded and not flash else None
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", cast or torch.bfloat16, enabled=bool(cast)):
            body(input_ids=torch.ones(shape, dtype=torch.long), attention_mask=mask, use_cache=False)
        return sum(storage.nbytes() for storage in held.values())


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
    moved = f"a step moves {share:.0%} of the weights, the rest round back to what they were"
    return f"{moved}, and little may be learned; recipes/24gb.yaml keeps small steps"
