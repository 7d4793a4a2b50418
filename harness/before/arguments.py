"""Arguments: the sections training and lora become upstream's GRPOConfig and LoraConfig, which check them.

What in them is for some runs only is settled when the policy and the data are known.
"""

import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import torch
from accelerate.utils import get_int_from_env
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from transformers.training_args import OptimizerNames
from trl import GRPOConfig

from harness.before.footprint import rounds_by_chance, sharding
from harness.before.policy import Policy
from harness.errors import UserError, one_line
from harness.processes import launched, rank, size
from harness.settings import Settings

OF_THE_REFERENCE = ("revision", "subfolder", "token", "cache_dir")  # TRL loads it by the policy's name

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # accelerate takes the first
CACHE_STEP = 64  # tokens; the length of a static cache is a multiple of it

OF_A_GROUP = (*SIZES, "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what starts several processes sets them


def training_arguments(settings: Settings) -> tuple[GRPOConfig, LoraConfig | None]:
    """GRPOConfig, and LoraConfig where there is LoRA; raises UserError with what they say against the settings.

    GRPOConfig waits for the other processes of this run.
    """
    found = " ".join(f"{name}={os.environ[name]}" for name in OF_A_GROUP if name in os.environ)
    _announce_group(settings, found)
    try:
        args, lora = _arguments(settings)
    except Exception as error:  # ValueError, TypeError, ImportError: all about the values, or about those in `found`
        if isinstance(error, torch.distributed.DistError) or any(name in str(error) for name in OF_A_GROUP):
            raise UserError(f"{found}: {one_line(error)}") from error
        raise settings.error(key_about(settings, _arguments, str(error)), one_line(error)) from error
    if max(size(), rank() + 1) > args.world_size:
        raise UserError(f"{found}: are not all that one of several processes needs; unset them, or use a launcher")
    return args, lora


def _announce_group(settings: Settings, found: str) -> None:
    """Say for whom this process is about to wait. --check waits for none, in a group of torch's that sends nothing."""
    processes = get_int_from_env(SIZES, 1)
    if processes == 1:
        return
    if settings.options.check:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    elif not launched():
        print(f"{found}: waiting for {processes} processes", file=sys.stderr)


def _arguments(settings: Settings) -> tuple[GRPOConfig, LoraConfig | None]:
    where = {key: settings.model[key] for key in OF_THE_REFERENCE if key in settings.model}
    training = {
        "run_name": Path(settings.training["output_dir"]).name,  # this and project are for trackers
        "project": "train-grpo",
        **settings.training,
        "trust_remote_code": settings.model.get("trust_remote_code", False),
        "model_init_kwargs": where or None,
    }
    if settings.options.check and not torch.cuda.is_available():  # GRPOConfig would refuse what this machine cannot run
        training["use_cpu"] = True
        if not (training.get("bf16") and training.get("fp16")):  # which it refuses anywhere
            training |= {"bf16": False, "fp16": False}
    args = GRPOConfig(**training)
    lora = None if settings.lora is None else LoraConfig(**settings.lora)
    return args, lora


def settle(settings: Settings, args: GRPOConfig, lora: LoraConfig | None, policy: Policy, longest: int) -> str:
    """Leave out of `args` what is not for this run, and say so; returns whether sampling is compiled, in words.

    Weights are rounded by chance where they are trained in bfloat16. Sampling is compiled, with a static cache that has
    room for the `longest` prompt in the whole run, where it can be and a GPU has measured it.
    """
    model_class = AutoModelForCausalLM._model_mapping.get(type(policy.config), None)  # None: code of its own
    why_not = ""
    if lora:  # without which quantized weights are not trained
        why_not = "LoRA"
    elif any(sharding(args)):
        why_not = "FSDP or ZeRO"
    elif policy.dtype != torch.bfloat16:
        why_not = "not bfloat16"
    if why_not and rounds_by_chance(args):
        args.optim = OptimizerNames.ADAMW_TORCH_FUSED
        args.optim_args = None
        print(f"note: training.optim: adamw_torch_fused, as bf16_stochastic_round is not for this run ({why_not})")
    if args.cache_implementation != "static":
        return ""
    if settings.training.get("use_cpu"):  # not args.use_cpu, which --check sets where there is no GPU
        why_not = "CPU"
    elif args.use_vllm:
        why_not = "vLLM"
    elif args.use_transformers_continuous_batching:
        why_not = "continuous batching"
    elif policy.keywords["attn_implementation"] not in (None, "sdpa"):
        why_not = policy.keywords["attn_implementation"]
    elif not getattr(model_class, "_can_compile_fullgraph", False):
        why_not = policy.config.model_type
    if why_not:
        args.cache_implementation = None
        return f"not compiled ({why_not})"
    length = CACHE_STEP * math.ceil((longest + args.max_completion_length) / CACHE_STEP)
    args.generation_kwargs = (args.generation_kwargs or {}) | {"max_cache_len": length}
    return "compiled"


def key_about(settings: Settings, call: Callable, message: str = "") -> str:
    """The key of training or lora that an error of `call(settings)` is about.

    It is one that the message describes; or the latest that it names, or without which there is none, of a mapping the
    one inside; `training` where there is no such key, and `rewards`, which `call` leaves out, where it raises nothing.
    """
    with suppress(Exception):
        call(settings)
        return "rewards"
    described = _described(message)
    if described:
        return described
    without = dict(_each_left_out({"training": settings.training, "lora": settings.lora}))
    places = [place for place in reversed(settings.places) if "." in place]  # a section itself is in every file
    for place in [*places, "lora"]:
        inside = [key for key in without if f"{key}.".startswith(f"{place}.")]
        for key in inside:
            sections = {"lora": None} | without.pop(key)
            try:
                if key.partition(".")[2] not in re.findall(r"\w+", message):
                    call(replace(settings, **sections))
            except Exception:  # there is one to report already
                continue
            return key
    return "training"


def _described(message: str) -> str | None:
    """The key of training of which a message has three words in their order: `eval batch size`, `per-device batch`."""
    text = message.replace("-", " ")
    for key in GRPOConfig.__dataclass_fields__:
        if any(" ".join(three) in text for three in combinations(key.split("_"), 3)):
            return f"training.{key}"
    return None


def _each_left_out(values: dict) -> Iterator[tuple[str, dict]]:
    """(dotted key, the values without it) of each key, those of mappings in it before it."""
    for key, value in values.items():
        others = {name: other for name, other in values.items() if name != key}
        if isinstance(value, dict):
            for inner, rest in _each_left_out(value):
                yield f"{key}.{inner}", others | {key: rest}
        yield key, others
