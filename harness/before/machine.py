"""Machine: can these settings run here at all? Asked first, before anything is read or loaded."""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec

import torch

from harness.before.footprint import LOW_BIT
from harness.errors import UserError
from harness.settings import Settings


def check_machine(settings: Settings) -> None:
    """Can these settings run on this machine at all? Raises UserError."""
    training = settings.training
    if training.get("bf16") and training.get("fp16"):  # as GRPOConfig would, from which --check takes both
        key = settings.latest("training.fp16", "training.bf16")
        other = "bf16" if key == "training.fp16" else "fp16"
        raise settings.error(key, f"cannot be true together with {other}; set one of them to false")
    if settings.model.get("quantization_config") and settings.lora is None:
        problem = "quantized weights are not trained without LoRA; use recipes/qlora.yaml, or do not quantize"
        raise settings.error(settings.latest("model.quantization_config", "lora"), problem)
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
        raise UserError(
            "machine: no CUDA GPU found; recipes/cpu.yaml trains a small model on a CPU, and `make demo` shows it"
        )
    if (count := torch.cuda.device_count()) > 1 and "LOCAL_RANK" not in os.environ:
        all_of_them = f"all of them with `python -m harness launch --num_processes {count} train_grpo.py`"
        one = "one with CUDA_VISIBLE_DEVICES=0"
        raise UserError(f"machine: {count} GPUs are visible to plain python; use {all_of_them}, or {one}")
    no_bf16 = training.get("bf16") is False or training.get("fp16")  # upstream's default is bf16
    if not no_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        problem = f"{torch.cuda.get_device_name()} has no bfloat16; set training.bf16: false and training.fp16: true"
        raise settings.error("training.bf16", f"{problem} (with model.dtype: float32, or LoRA)")
    if problem := no_compiler():
        raise UserError(f"machine: {problem}")


def no_compiler() -> str | None:
    """What Triton lacks, as it looks for it: TRL's log-probabilities on a GPU are compiled at the first step."""
    if find_spec("triton") is None:  # TRL does without it then
        return None
    named, missing = os.environ.get("CC"), []
    if not any(map(shutil.which, [named] if named else ["gcc", "clang"])):
        missing.append(f"compiler {named}, which CC names" if named else "C compiler")
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = os.path.join(sysconfig.get_paths(scheme)["include"], "Python.h")
    missing += [] if os.path.exists(header) else [header]
    python = f"python3.{sys.version_info.minor}-dev"
    remedy = f"with which Triton compiles at the first step; apt install gcc {python}, or what your system calls them"
    return f"no {' and no '.join(missing)}, {remedy}" if missing else None
