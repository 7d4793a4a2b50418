"""Weights: can those of this model be trained at all? Asked before they are loaded."""

import json
from importlib.util import find_spec
from pathlib import Path

import torch

from harness.before.plan import Plan
from harness.settings import Settings

PACKAGES = {"bitsandbytes": "bitsandbytes", "awq": "gptqmodel", "gptq": "gptqmodel", "hqq": "hqq", "quanto": "optimum"}
PACKAGES |= {"compressed-tensors": "compressed_tensors", "torchao": "torchao", "aqlm": "aqlm", "eetq": "eetq"}
MODEL = "model.pretrained_model_name_or_path"


def check_weights(plan: Plan) -> None:
    """None there, quantized ones, float16 ones, token ids without an embedding: raises UserError."""
    settings, config = plan.settings, plan.policy.config
    name = settings.model["pretrained_model_name_or_path"]
    _check_folder(settings, name)
    found = getattr(config, "quantization_config", None) or {}
    method = str((found if isinstance(found, dict) else found.to_dict()).get("quant_method", "") or "")
    if method and method != "mxfp4":  # which is loaded as bfloat16
        if not plan.lora:
            problem = f"the weights of {name} are quantized ({method}), and such are not trained"
            raise settings.error(
                MODEL, f"{problem}; choose the model they were made from, or LoRA (recipes/qlora.yaml)"
            )
        if (package := PACKAGES.get(method)) and find_spec(package) is None and not settings.options.check:
            raise settings.error(MODEL, f"{name} is quantized ({method}), which needs {package}; install it")
    if settings.training.get("fp16") and plan.policy.dtype() == torch.float16 and not plan.lora:
        problem = "the loss scaler of fp16 wants float32 weights, not float16; set model.dtype: float32, or use LoRA"
        raise settings.error("model.dtype", problem)
    _check_token_ids(plan)


def _check_folder(settings: Settings, name: str) -> None:
    """A folder has weights, and all of their files."""
    folder = Path(name, settings.model.get("subfolder") or "")
    if not folder.is_dir() or settings.model.get("gguf_file"):
        return
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        if missing := sorted(file for file in named if not (folder / file).exists()):
            problem = f"of the weights in {folder} {len(missing)} of {len(named)} files are missing ({missing[0]})"
            raise settings.error(MODEL, f"{problem}; download the model again")
    elif not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        what = "only GGUF, a format for inference" if any(folder.glob("*.gguf")) else "no weights (no *.safetensors)"
        raise settings.error(MODEL, f"{folder} holds {what}; name or download the safetensors model")


def _check_token_ids(plan: Plan) -> None:
    """Each token that the template and the tokenizer make has an embedding."""
    tokenizer, known = plan.policy.tokenizer, plan.policy.config.get_text_config().vocab_size
    if max(tokenizer.get_vocab().values()) < known:
        return
    used = {tokenizer.pad_token_id, tokenizer.eos_token_id} - {None}
    template = (plan.args.chat_template_kwargs or {}) | {"add_generation_prompt": True}
    for rows in (plan.data.train, plan.data.held_out):
        for batch in rows.select_columns("prompt").iter(1000):
            for ids in tokenizer.apply_chat_template(batch["prompt"], **template)["input_ids"]:
                used.update(ids)
    if beyond := sorted(each for each in used if each >= known):
        token = tokenizer.convert_ids_to_tokens(beyond[0])
        problem = f"its tokenizer makes {token!r} the token {beyond[0]}, but it has only {known} embeddings"
        raise plan.settings.error(MODEL, f"{problem}; use the tokenizer that belongs to it, or resize its embeddings")
