"""Merge a LoRA run's adapter into its base model, so that from_pretrained opens it without peft, and check the result.

python -m harness merge outputs/lora                  # writes outputs/lora-merged
python -m harness merge outputs/lora -o FOLDER
"""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.errors import RunError, UserError
from harness.run_folder import RunFolder

# How far the logits may be off, as a share of what the adapter changes in them, for rounding to the base model's dtype.
# Measured on a tiny run whose adapter moves the logits by 5%: float32 0.0004%, float16 0.1%, bfloat16 1.2%; with a
# tenth of that adapter bfloat16 is 9% off, with a hundredth 75%. A merge that does nothing is 100% off.
TOLERANCE = {"float32": 0.02, "float16": 0.25, "bfloat16": 0.25}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="LORA", help="the output_dir of a LoRA run")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="a new folder; default: LORA-merged")
    options = parser.parse_args(arguments)
    folder, output = RunFolder(options.folder), options.output or Path(f"{options.folder}-merged")
    settings = folder.trained()
    if not folder.is_lora():
        raise UserError(f"{folder}: no LoRA run, so there is nothing to merge; it opens with from_pretrained as it is")
    if output.exists():
        raise UserError(f"{output}: is there already, and is never overwritten; choose another folder with -o")
    from harness.processes import quiet

    with quiet():
        dtype, off = merge(settings, folder, output)
    print(f"{output}: merged in {dtype}; its logits are off by {off:.2%} of what the adapter changes in them")


def merge(settings: dict[str, Any], folder: RunFolder, output: Path) -> tuple[str, float]:
    """(dtype of the model in `output`, how far it is off); raises RunError, and leaves nothing, where it is too far."""
    import torch
    from transformers import AutoTokenizer

    from harness.before.messages import as_messages
    from harness.tools.trained import load_model

    base_model, lora = settings["model"], folder.path
    tokenizer = AutoTokenizer.from_pretrained(lora)
    questions = [sample["question"] for sample in folder.samples() or ()] or ["?"]
    prompts = [as_messages(question, settings["prompts"].get("system")) for question in questions]

    @torch.no_grad()
    def logits(model) -> torch.Tensor:  # in float32, so that they differ by what the weights hold, and no more
        tokens = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for prompt in prompts]
        return torch.cat([model.float()(torch.tensor([ids], device=model.device)).logits[0].cpu() for ids in tokens])

    model = load_model(base_model, lora)
    if not any(weights.any() for name, weights in model.named_parameters() if "lora_" in name and "_B" in name):
        raise RunError(f"{folder}: every B of its adapter is zero: it has learned nothing, so nothing can be merged")
    adapter = logits(model)
    with model.disable_adapter():
        base = logits(model)
    del model
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.absolute().parent) as temporary:
        written = Path(temporary) / output.name
        load_model(base_model, lora).merge_and_unload(safe_merge=True).save_pretrained(written)
        tokenizer.save_pretrained(written)
        model = load_model(base_model, written)
        dtype, merged = str(model.dtype).removeprefix("torch."), logits(model)
        off = ((merged - adapter).norm() / (base - adapter).norm()).item()
        if not off <= TOLERANCE[dtype]:
            same = "it would be the base model; " if torch.equal(merged, base) else ""
            far = f"its logits would be off by {off:.0%} of what the adapter changes in them, of {TOLERANCE[dtype]:.0%}"
            raise RunError(f"{folder}: not merged in {dtype}: {same}{far} allowed; open the adapter with peft instead")
        kept = (folder.settings_file, folder.rewards_file, folder.run_file, folder.samples_file, folder.state_file)
        for file in filter(Path.exists, kept):  # so that chat and compare read the merged folder as they read the run
            shutil.copy(file, written)
        written.rename(output)
    return dtype, off
