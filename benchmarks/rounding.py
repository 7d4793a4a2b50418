"""Does a real model in bfloat16 learn at the article's learning rate? python benchmarks/rounding.py outputs/real

After `make real`. 12 steps of 16 completions at 1e-6 with float32, bfloat16, and bfloat16 with stochastic rounding; 5
minutes each on two cores. How much each has learned is told without sampling: by how much likelier the answers that
`make real` gave after its run have become, compared with those before it (log-probability, in nats per answer).
"""

import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))
from real import BFLOAT16, ROOT, STOCHASTIC

from harness.before.messages import as_messages
from harness.run_folder import RunFolder

BASE = "demo/real/model"
RUNS = {"float32": [], "bfloat16": BFLOAT16, "bfloat16 rounded by chance": [*BFLOAT16, *STOCHASTIC]}
SETTINGS = {"max_steps": 12, "gradient_accumulation_steps": 2, "learning_rate": 1e-6, "lr_scheduler_type": "constant"}


def trained(name: str, arguments: list[str]) -> Path:
    folder = ROOT / "outputs/rounding" / name.replace(" ", "-")
    if not (folder / "model.safetensors").exists():
        values = [f"--training.{key}={value}" for key, value in (SETTINGS | {"output_dir": folder}).items()]
        files = ["--config=recipes/cpu.yaml", "--config=demo/real/config.yaml", "--samples.held_out=0"]
        command = [sys.executable, "train_grpo.py", *files, *values, *arguments]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder


@torch.no_grad()
def preference(model: torch.nn.Module, tokenizer, run: RunFolder) -> list[float]:
    """Of each held-out question log p(answer after the run) - log p(answer before it)."""
    found, system = [], run.settings()["prompts"]["system"]
    for row in (row for row in run.samples() if row["held_out"]):
        messages = as_messages(row["question"], system)
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        logps = []
        for side in ("after", "before"):
            answer = tokenizer(row[side]["completion"], add_special_tokens=False)["input_ids"]
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            logps.append(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item())
        found.append(logps[0] - logps[1])
    return found


if __name__ == "__main__":
    run, tokenizer = RunFolder(sys.argv[1]), AutoTokenizer.from_pretrained(ROOT / BASE)
    print("| weights | nats per answer | weights that moved |\n|---|---|---|")
    for name, arguments in RUNS.items():
        dtype = torch.bfloat16 if arguments else torch.float32
        paths = (ROOT / BASE, trained(name, arguments))
        # The weights as they are stored, but computed with in float32.
        models = [AutoModelForCausalLM.from_pretrained(path, dtype=dtype).float().eval() for path in paths]
        before, after = (preference(model, tokenizer, run) for model in models)
        gains = [b - a for a, b in zip(before, after, strict=True)]
        old, new = (torch.cat([weight.flatten() for weight in model.parameters()]) for model in models)
        moved = (old != new).float().mean().item()
        print(f"| {name} | {mean(gains):+.3f} ± {stdev(gains) / len(gains) ** 0.5:.3f} | {moved:.1%} |", flush=True)
