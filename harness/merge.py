"""Merge a LoRA run's adapter into its base model, so that from_pretrained opens it without peft, and check the result.

python -m harness.merge outputs/lora                  # writes outputs/lora-merged
python -m harness.merge outputs/lora -o FOLDER
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from harness.exits import RunError, UserError, exit_status, go_offline_without_network

if TYPE_CHECKING:
    from harness.settings import Settings

# How far the logits may be off, as a share of what the adapter changes in them, for rounding to the base model's dtype.
# Measured on a tiny run whose adapter moves the logits by 5%: float32 0.0004%, float16 0.1%, bfloat16 1.2%; with a
# tenth of that adapter bfloat16 is 9% off, with a hundredth 75%. A merge that does nothing is 100% off.
TOLERANCE = {"float32": 0.02, "float16": 0.25, "bfloat16": 0.25}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="LORA", help="the output_dir of a LoRA run")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="a new folder; default: LORA-merged")
    options = parser.parse_args(arguments)
    folder, output = options.folder, options.output or Path(f"{options.folder}-merged")
    from harness.settings import run_settings

    settings = run_settings(folder)
    if not (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: no LoRA run, so there is nothing to merge; it opens with from_pretrained as it is")
    if output.exists():
        raise UserError(f"{output}: is there already, and is never overwritten; choose another folder with -o")
    from harness.finished_run import quiet

    with quiet():
        dtype, off = merge(settings, folder, output)
    print(f"{output}: merged in {dtype}; its logits are off by {off:.2%} of what the adapter changes in them")


def merge(settings: "Settings", folder: Path, output: Path) -> tuple[str, float]:
    """(dtype of the model in `output`, how far it is off); raises RunError, and leaves nothing, where it is too far."""
    import torch
    from transformers import AutoTokenizer

    from harness.finished_run import load_model
    from harness.loading import as_messages

    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines() or ['{"question": "?"}']
    prompts = [as_messages(json.loads(line)["question"], settings.prompts.system) for line in lines]

    @torch.no_grad()
    def logits(model) -> torch.Tensor:  # in float32, so that they differ by what the weights hold, and no more
        tokens = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for prompt in prompts]
        return torch.cat([model.float()(torch.tensor([ids], device=model.device)).logits[0].cpu() for ids in tokens])

    model = load_model(settings, folder)
    if not any(weights.any() for name, weights in model.named_parameters() if "lora_" in name and "_B" in name):
        raise RunError(f"{folder}: every B of its adapter is zero: it has learned nothing, so nothing can be merged")
    adapter = logits(model)
    with model.disable_adapter():
        base = logits(model)
    del model
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.absolute().parent) as temporary:
        written = Path(temporary) / output.name
        load_model(settings, folder).merge_and_unload(safe_merge=True).save_pretrained(written)
        tokenizer.save_pretrained(written)
        model = load_model(settings, written)
        dtype, merged = str(model.dtype).removeprefix("torch."), logits(model)
        off = ((merged - adapter).norm() / (base - adapter).norm()).item()
        if not off <= TOLERANCE[dtype]:
            same = "it would be the base model; " if torch.equal(merged, base) else ""
            far = f"its logits would be off by {off:.0%} of what the adapter changes in them, of {TOLERANCE[dtype]:.0%}"
            raise RunError(f"{folder}: not merged in {dtype}: {same}{far} allowed; open the adapter with peft instead")
        written.rename(output)
    return dtype, off


if __name__ == "__main__":
    go_offline_without_network()
    sys.exit(exit_status(main, "nothing was written"))
