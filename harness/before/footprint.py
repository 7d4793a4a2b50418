"""Footprint: the memory and disk of a run, from the model's shape alone."""

import copy
import logging
import math
import os
import re
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from trl import GRPOConfig

from harness.before.policy import NAME, Policy
from harness.errors import in_short, one_line
from harness.settings import Settings

GB = 1e9
DIVIDED_FROM = {"weights": 3, "reference model": 3, "gradients": 2, "optimizer": 1}  # from this stage of ZeRO on
CUDA_CONTEXT = 0.9 * GB  # what a process takes of a GPU beside its tensors; seen on an H200
TILE_TOKENS, TILE_VOCABULARY = 4096, 32_768  # the part of the logits that TRL computes at a time
LOW_BIT = {"adamw_torch_8bit": 8.25, "adamw_torch_4bit": 4.25}  # bits per value of Adam's state, block scales included
FOUR_BIT = 0.52  # bytes per value of a 4-bit weight, block scales included
FLOAT32, BFLOAT16 = 4, 2  # bytes per value
UNLIMITED = 10  # checkpoints that are counted where save_total_limit is null


@dataclass
class Footprint:
    """Estimated: bytes on each GPU, by part; and bytes that a run leaves on the disk.

    `uncounted`: why the activations of a layer are taken for a Llama's; empty where they have been counted.
    """

    parameters: int
    trainable: int
    memory: dict[str, float]
    disk: float
    uncounted: str


def footprint(
    settings: Settings, policy: Policy, args: GRPOConfig, lora: LoraConfig | None, longest_prompt: int
) -> Footprint:
    """Sizes from the model's shape, and the tokens of a prompt. Raises UserError for a LoRA that does not fit it."""
    rows = args.per_device_train_batch_size
    tokens = longest_prompt + args.max_completion_length
    unset_hf_deepspeed_config()  # or ZeRO-3 would divide a model that has no weights
    try:  # first without LoRA: its parameters are the base model's, and its errors are about the model
        base = _without_weights(policy, policy.config, None)
    except Exception as error:  # ValueError: Unrecognized configuration class; Bloom does not support ...
        problem = str(error).partition("Model type should be")[0]  # over a hundred
        raise settings.error(NAME, f"{policy.config.model_type}: {one_line(problem)}") from error
    parameters = base.num_parameters()
    for module in _not_there(lora, base):  # which peft passes over where others are there
        matrices = {name.split(".")[-2] for name, weight in base.named_parameters() if weight.dim() == 2}
        problem = f"the model has no module {module}; it has {', '.join(sorted(matrices))}"
        raise settings.error("lora.target_modules", problem)
    try:
        model = _without_weights(policy, policy.config, lora)
    except Exception as error:  # peft's own, about other settings of LoRA
        raise settings.error("lora", one_line(error)) from error
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    activations, uncounted = _activations(policy, args, lora, rows, tokens)
    if args.deepspeed_plugin:
        set_hf_deepspeed_config(args.deepspeed_plugin.dschf)

    text = policy.config.get_text_config()
    fsdp, zero = sharding(args)
    mixed = policy.precision is not None
    width = policy.dtype.itemsize
    trained_width = 4 if lora or (fsdp and mixed) else width  # in which peft and FSDP2 keep what is trained
    state_bits = LOW_BIT.get(args.optim, 8 * trained_width)
    state = 2 * state_bits / 8  # Adam's two moments
    saved_state = trainable * state
    if zero and mixed:
        state = 3 * FLOAT32  # and a copy of the weights
    weights = parameters * (width if lora else trained_width)
    quantization = policy.keywords.get("quantization_config") or {}
    if quantization.get("load_in_4bit"):
        embeddings = text.vocab_size * text.hidden_size  # which stay as they are
        weights = embeddings * width + (parameters - embeddings) * FOUR_BIT
    memory = {
        "weights": weights,
        "gradients": trainable * trained_width,
        "optimizer": trainable * state,
        "reference model": parameters * width if args.beta and not lora else 0,
        "weights gathered to sample": parameters * width if zero == 3 and not args.use_vllm else 0,
        "activations": activations,
        "CUDA context": 0 if settings.training.get("use_cpu") else CUDA_CONTEXT,
        "sampling, beyond these": 0,
    }
    for part, stage in DIVIDED_FROM.items():
        if fsdp or zero >= stage:
            memory[part] /= args.world_size
    if not args.use_vllm:
        sampling = _sampling(text, rows * args.steps_per_generation, tokens)
        not_yet_there = memory["gradients"] + activations
        memory["sampling, beyond these"] = max(0, sampling - not_yet_there)

    saved = trainable * trained_width
    checkpoint = saved if args.save_only_model else saved + saved_state
    checkpoints = 0
    if args.save_strategy != "no":
        kept_at_once = args.save_total_limit or UNLIMITED
        checkpoints = kept_at_once + 1  # one more while the next is written
    return Footprint(parameters, trainable, memory, saved + checkpoint * checkpoints, uncounted)


def rounds_by_chance(args: GRPOConfig) -> bool:
    """Whether the optimizer is told to round weights in bfloat16 by chance; upstream takes several words for yes."""
    return bool(re.search(r"bf16_stochastic_round\s*=\s*(y|t|1|on)", args.optim_args or "", re.IGNORECASE))


def sharding(args: GRPOConfig) -> tuple[bool, int]:
    """(whether FSDP divides the model over the processes, DeepSpeed's ZeRO stage or 0), as the launcher has chosen."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if args.deepspeed_plugin is None:
        return fsdp, 0
    return fsdp, args.deepspeed_plugin.zero_stage


def _not_there(lora: LoraConfig | None, model: PreTrainedModel) -> list[str]:
    """The names under target_modules that fit no module of the model."""
    if lora is None or not isinstance(lora.target_modules, set | list):
        return []
    there = [f".{name}" for name, _ in model.named_modules()]
    return [module for module in lora.target_modules if not any(name.endswith(f".{module}") for name in there)]


def _sampling(text: PreTrainedConfig, rows: int, tokens: int) -> float:
    """Bytes of the cache of keys and values, and of the logits of one token per row: in float32, with two copies."""
    heads = getattr(text, "num_attention_heads", 0)  # Mamba has none
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // (heads or 1)
    keys_and_values = 2 * text.num_hidden_layers * key_heads * head_size
    cache = rows * tokens * keys_and_values * BFLOAT16
    logits = 3 * rows * text.vocab_size * FLOAT32
    return cache + logits


# ---- activations


def _activations(
    policy: Policy, args: GRPOConfig, lora: LoraConfig | None, rows: int, tokens: int
) -> tuple[float, str]:
    """(bytes that a micro-batch takes at most, why its layers could not be counted, or nothing)."""
    text = policy.config.get_text_config()
    width = policy.dtype.itemsize
    hidden = rows * tokens * text.hidden_size  # values of a micro-batch between two layers
    uncounted = ""
    try:
        first = kept(policy, lora, rows, tokens, layers=1)
        another = kept(policy, lora, rows, tokens, layers=2) - first
    except Exception as error:  # of many kinds: LoRA for the tenth layer, a model whose way depends on its values
        uncounted = in_short(error)
        mlp = getattr(text, "intermediate_size", None) or 4 * text.hidden_size  # as usual; GPT-2's has none
        # Of a Llama's layer, in 16 bits: 12 tensors as wide as the model, and 4 as wide as the MLP.
        first = another = BFLOAT16 * rows * tokens * (12 * text.hidden_size + 4 * mlp)
    scored = min(rows * args.max_completion_length, TILE_TOKENS)
    logits_width = BFLOAT16 if policy.precision else width
    head = FLOAT32 * hidden + logits_width * scored * TILE_VOCABULARY
    if not lora:  # the gradient of the head is summed in float32, beside one in its own type
        own = 0 if width == FLOAT32 else width
        head += text.vocab_size * text.hidden_size * (FLOAT32 + own)
    layers = text.num_hidden_layers
    if not args.activation_checkpointing:
        return first + (layers - 1) * another + head, uncounted
    options = args.activation_checkpointing_kwargs or {}
    checkpointed = math.ceil(layers / options.get("every_n_layers", 1))  # computed again, one at a time
    inputs = 0 if options.get("offload") else checkpointed * hidden * width
    return inputs + (layers - checkpointed) * another + max(head, first), uncounted


def kept(policy: Policy, lora: LoraConfig | None, rows: int, tokens: int, layers: int) -> int:
    """Bytes that so many layers keep for the backward pass, as PyTorch itself keeps them: of tensors without values."""
    config = copy.deepcopy(policy.config.get_text_config())
    config.num_hidden_layers = layers
    for name, value in vars(config).items():
        if "att" in name and "drop" in name:  # with it a CPU keeps the whole matrix of attention, a GPU does not
            setattr(config, name, 0.0)
        elif name == "layer_types" and value:
            config.layer_types = value[:layers]
    body = _without_weights(policy, config, lora).base_model.train()  # without the head
    for module in body.modules():
        if isinstance(module, torch.nn.Dropout) and module.p:
            module.forward = _drop_as_a_gpu_does
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # kept, or the next one could have its address
        return tensor

    logging.getLogger("torch._subclasses.fake_tensor").disabled = True  # what goes wrong there, the plan says
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    cast = policy.precision or torch.bfloat16  # autocast wants one even where it is off
    with FakeTensorMode(allow_non_fake_inputs=True):
        body.to_empty(device="cpu")  # without values as before, but computed as on a CPU, with its autocast
        batch = torch.ones(rows, tokens, dtype=torch.long)
        with hooks, torch.autocast("cpu", cast, enabled=policy.precision is not None):
            body(input_ids=batch, attention_mask=batch, use_cache=False)  # a mask, as of padded rows
        for weight in body.parameters():
            storages.pop(weight.untyped_storage()._cdata, None)
        return sum(storage.nbytes() for storage in storages.values())


def _drop_as_a_gpu_does(values: torch.Tensor) -> torch.Tensor:
    """Dropout that keeps its mask in bytes; a CPU keeps it in the values' own type."""
    return torch.native_dropout(values, 0.5, True)[0]


def _without_weights(policy: Policy, config: PreTrainedConfig, lora: LoraConfig | None) -> PreTrainedModel:
    """A model of this config on the device `meta`, where a tensor is a shape.

    Where the attention is neither eager nor PyTorch's, the model's default takes its place.

    LoRA is put into it there, as peft does not take a model of FakeTensorMode.
    """
    attention = policy.keywords.get("attn_implementation")
    if attention not in ("eager", "sdpa"):
        attention = None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=policy.dtype,
            attn_implementation=attention,
            trust_remote_code=policy.keywords.get("trust_remote_code", False),
        )
        if lora:
            get_peft_model(model, copy.deepcopy(lora))  # in place; peft also writes into the config
    return model
