"""Merge a LoRA run's adapter into its base model, so that from_pretrained opens it without peft, and check the result.

python -m harness merge outputs/lora                  # writes outputs/lora-merged
python -m harness merge outputs/lora -o FOLDER
"""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.errors import RunError, UserError
from harness.processes import quiet
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
    folder = RunFolder(options.folder)
    output = options.output or Path(f"{options.folder}-merged")
    settings = folder.trained()
    if not folder.is_lora():
        raise UserError(f"{folder}: no LoRA run, so there is nothing to merge; it opens with from_pretrained as it is")
    if output.exists():
        raise UserError(f"{output}: is there already, and is never overwritten; choose another folder with -o")

    with quiet():
        merge(settings, folder, output)


def merge(settings: dict, folder: RunFolder, output: Path) -> None:
    """Write the model into `output`, and say how far it is off; raises RunError, and leaves nothing, if too far."""
    import torch
    from transformers import AutoTokenizer

    from harness.before.data import prompt_text
    from harness.before.messages import as_messages
    from harness.before.policy import load_model

    base_model = settings["model"]
    template = settings["training"].get("chat_template_kwargs") or {}
    system = settings["prompts"].get("system")
    tokenizer = AutoTokenizer.from_pretrained(folder.path)
    questions = [sample["question"] for sample in folder.samples() or []] or ["?"]
    texts = [prompt_text(as_messages(question, system), tokenizer, template) for question in questions]
    prompts = [tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts]

    @torch.no_grad()
    def logits(model) -> torch.Tensor:  # in float32, so that they differ by what the weights hold, and no more
        model.float()
        return torch.cat([model(prompt.to(model.device)).logits[0].cpu() for prompt in prompts])

    base = logits(load_model(base_model))  # not by disable_adapter(): some adapters change it
    adapter = logits(load_model(base_model, folder.path))
    if torch.equal(adapter, base):
        raise RunError(f"{folder}: its adapter changes nothing, so there is nothing to merge")

    parent = output.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent) as temporary:
        written = Path(temporary) / output.name
        model = load_model(base_model, folder.path).merge_and_unload(safe_merge=True)
        model.save_pretrained(written)
        tokenizer.save_pretrained(written)
        model = load_model(base_model, written)  # as others will open it
        dtype = str(model.dtype).removeprefix("torch.")
        merged = logits(model)
        off = (merged - adapter).norm() / (base - adapter).norm()
        allowed = TOLERANCE[dtype]
        if not off <= allowed:  # a NaN is not either
            raise RunError(
                f"{folder}: not merged in {dtype}: its logits would be off by {off:.0%} of what the adapter changes in "
                f"them, of {allowed:.0%} allowed; open the adapter with peft instead"
            )
        # So that chat and compare read the merged folder as they read the run.
        files = (folder.settings_file, folder.rewards_file, folder.run_file, folder.samples_file, folder.state_file)
        for file in (*files, folder.curves, folder.card):
            if file.exists():
                shutil.copy(file, written)
        written.rename(output)
    print(f"{output}: merged in {dtype}; its logits are off by {off:.2%} of what the adapter changes in them")
