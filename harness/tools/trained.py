"""Trained: a finished run's models, loaded again by chat and merge from what its folder says of itself."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from harness.before.policy import loading_problem
from harness.errors import UserError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load_model(section: dict, folder: Path | None = None) -> PreTrainedModel | PeftModel:
    """The base model that the section `model` names; or what `folder` holds, in the dtype it was saved in: a whole
    model, or the base with an adapter.

    The attention is the model's own choice: not every machine has the one of the training.
    """
    name = section["pretrained_model_name_or_path"]
    try:
        if folder and not (folder / "adapter_config.json").exists():
            name = str(folder)
            trust = section.get("trust_remote_code", False)
            model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=trust)
        else:
            keywords = section | {"attn_implementation": None, "device_map": None}
            model = AutoModelForCausalLM.from_pretrained(**keywords)
            if folder:
                name = str(folder)
                model = PeftModel.from_pretrained(model, name)
    except Exception as error:  # as in load_policy; a folder's files may be damaged, or for another base model
        raise UserError(f"model: {loading_problem(name, error)}") from error
    return model.to(DEVICE).eval()
