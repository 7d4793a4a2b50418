"""Machine: can these settings run here, and can these weights be trained? Asked before any of them is loaded."""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.quantizers import AutoHfQuantizer
from trl.trainer.utils import create_model_from_path

from harness.before.data import prompt_text
from harness.before.footprint import LOW_BIT, sharding
from harness.before.plan import Plan
from harness.before.policy import NAME, loading_problem, precision
from harness.errors import UserError, one_line
from harness.processes import quiet
from harness.settings import Settings

# Of from_pretrained: a tensor is a shape, and what does not fit comes back as lists.
TO_TRY = {"device_map": "meta", "ignore_mismatched_sizes": True, "output_loading_info": True}


def check_machine(settings: Settings) -> None:
    """What the settings alone ask of the machine, before anything is read; raises UserError."""
    training = settings.training
    if settings.model.get("quantization_config"):
        _check_quantized(settings, "model.quantization_config", settings.model["quantization_config"])
    if _for_another_machine(settings):
        print("machine: no CUDA GPU here, which training needs; this is the plan for a machine that has one")
        return
    if training.get("use_vllm") and find_spec("vllm") is None:
        raise settings.error(
            "training.use_vllm",
            "vLLM is not installed (TRL 1.16 takes 0.22 to 0.31); run `make gpu`, or set it to false",
        )
    if not training.get("use_cpu"):
        _check_gpus(settings)


def check_weights(plan: Plan) -> None:
    """What would go wrong with this model's weights, once they were loaded; raises UserError."""
    settings, policy = plan.settings, plan.policy
    quantization = getattr(policy.config, "quantization_config", None)
    if quantization:
        _check_quantized(settings, NAME, quantization)
    else:
        _check_folder(plan)
    if policy.precision == policy.dtype == torch.float16 and not plan.lora:
        problem = "the loss scaler of fp16 wants float32 weights, not float16; set model.dtype: float32, or use LoRA"
        raise settings.error("model.dtype", problem)
    if plan.args.optim in LOW_BIT and not _for_another_machine(settings):
        compiler = missing_compiler()
        if compiler:
            problem = f"torchao compiles it, and there is no {compiler}; adamw_torch_fused needs none"
            raise settings.error("training.optim", problem)
    _check_token_ids(plan)


def _for_another_machine(settings: Settings) -> bool:
    """Whether this is a --check on a machine without a GPU, of a run that needs one."""
    return settings.options.check and not settings.training.get("use_cpu") and not torch.cuda.is_available()


def _check_gpus(settings: Settings) -> None:
    if not torch.cuda.is_available():
        remedy = "recipes/cpu.yaml trains a small model on a CPU, and `make demo` shows it"
        raise UserError(f"machine: no CUDA GPU found; {remedy}")
    count = torch.cuda.device_count()
    if count > 1 and "LOCAL_RANK" not in os.environ:
        launch = f"python -m harness launch --num_processes {count} train_grpo.py"
        raise UserError(f"machine: {count} GPUs are visible to one process; use `{launch}`, or CUDA_VISIBLE_DEVICES=0")
    if precision(settings.training) == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        remedy = "set training.bf16: false and training.fp16: true (with model.dtype: float32, or LoRA)"
        raise settings.error("training.bf16", f"{torch.cuda.get_device_name()} has no bfloat16; {remedy}")
    if find_spec("triton") is not None:  # without it TRL does not compile its log-probabilities
        compiler = missing_compiler()
        if compiler:
            raise UserError(f"machine: Triton compiles at the first step, and there is no {compiler}")


def missing_compiler() -> str:
    """The compiler or header that is not here, of those that compiled steps need, as Triton looks for them; or ""."""
    compilers = ["gcc", "clang"]
    if "CC" in os.environ:
        compilers = [os.environ["CC"]]
    if not any(shutil.which(compiler) for compiler in compilers):
        return f"C compiler ({' or '.join(compilers)})"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_paths(scheme)["include"], "Python.h")
    if not header.exists():
        return f"{header}; install python3.{sys.version_info.minor}-dev"
    return ""


def _check_quantized(settings: Settings, key: str, quantization: dict[str, Any]) -> None:
    """Quantized weights are trained with LoRA alone, and their package has to be there."""
    if quantization.get("quant_method") == "mxfp4":  # is loaded as bfloat16
        return
    if settings.lora is None:
        raise settings.error((key, "lora"), "quantized weights are not trained without LoRA; see recipes/qlora.yaml")
    if _for_another_machine(settings):
        return
    try:
        AutoHfQuantizer.from_config(quantization, pre_quantized=key == NAME).validate_environment()
    except (ImportError, RuntimeError, ValueError) as error:  # a package is missing, or does not work here
        raise settings.error(key, one_line(error)) from error


def _check_folder(plan: Plan) -> None:
    """The weights of a folder are whole, and the model's: loaded to where a tensor is a shape."""
    args, keywords = plan.args, plan.policy.keywords | TO_TRY
    name = keywords.pop("pretrained_model_name_or_path")
    if not Path(name).is_dir() or keywords.get("quantization_config"):
        return
    if any(sharding(args)):  # a model that is to be divided takes no device_map
        return
    load = AutoModelForCausalLM.from_pretrained
    if args.beta and not plan.lora:
        load = create_model_from_path  # TRL's, for the reference model: of the class that its config.json names
    try:
        with quiet():
            _, found = load(name, **keywords)
        for kind, keys in found.items():
            told = f"{kind}: {one_line(sorted(keys))}"
            if keys and kind == "unexpected_keys":  # which are not loaded, as a value head's
                print(f"note: {name}: {told}")
            elif keys:  # upstream draws at random what is missing
                raise ValueError(told)
    except Exception as error:  # OSError, RuntimeError, safetensors' own
        raise plan.settings.error(NAME, loading_problem(name, error)) from error


def _check_token_ids(plan: Plan) -> None:
    """Each token that the template and the tokenizer make has an embedding."""
    tokenizer = plan.policy.tokenizer
    known = plan.policy.config.get_text_config().vocab_size
    if max(tokenizer.get_vocab().values()) < known:
        return
    highest = max(tokenizer.pad_token_id, tokenizer.eos_token_id or 0)
    for row in chain(plan.data.train, plan.data.held_out):
        text = prompt_text(row["prompt"], tokenizer, plan.args.chat_template_kwargs or {})
        highest = max([highest, *tokenizer(text, add_special_tokens=False)["input_ids"]])
    if highest >= known:
        token = tokenizer.convert_ids_to_tokens(highest)
        problem = f"its tokenizer makes {token!r} the token {highest}, but it has only {known} embeddings"
        raise plan.settings.error(NAME, problem)
