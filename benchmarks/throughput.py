"""The article's hours and memory on this machine, by rehearsals: python benchmarks/throughput.py [ROW ...]

A policy of random weights in TinySwallow's exact shape (--shape tiny: 1.5M parameters, for a CPU) is rehearsed
with config.yaml, with each recipe, and with one lever alone. Random weights sample to full length, so that a typical
step is a worst case too. --cap-gb makes a GPU look smaller.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]
SHAPES = {  # vocabulary, width, MLP, layers, heads, key/value heads
    "tinyswallow": (151_936, 1536, 8960, 28, 12, 2),
    "tiny": (4_096, 128, 512, 4, 4, 2),
}
ROWS = {
    "config.yaml": [],
    **{
        f"recipes/{path.name}": ["--config", f"recipes/{path.name}"]
        for path in sorted((ROOT / "recipes").glob("*.yaml"))
    },
    "sampling not compiled": ["--training.cache_implementation", "null"],
    "gradient checkpointing off": ["--training.gradient_checkpointing", "false"],
    "64 x 1": ["--training.per_device_train_batch_size", "64", "--training.gradient_accumulation_steps", "1"],
    "256 per generation call": ["--training.steps_per_generation", "16"],
    "1024 per generation call": ["--training.steps_per_generation", "64"],
}


def build_model(shape: str, folder: str) -> None:
    """Random weights and the demo's tokenizer, as from_pretrained opens them."""
    import build
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    vocabulary, width, mlp, layers, heads, kv_heads = SHAPES[shape]
    tokenizer = build.build_tokenizer([json.loads(line) for line in (ROOT / "demo/questions.jsonl").open("rb")])
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = Qwen2Config(vocab_size=vocabulary, num_key_value_heads=kv_heads, tie_word_embeddings=True, **sizes)
    config.max_position_embeddings = 32_768
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# What --rehearse prints.
MEMORY = re.compile(r"memory: ([\d.]+) GB measured, of the whole process; ([\d.]+) GB calculated")
SECONDS = re.compile(r"([\d.]+) s per step, (\d+)% of it sampling; with completions as they are now ([\d.]+) s")


def rehearsed(row: list[str], folder: str, cap_gb: float | None) -> list[float]:
    """(GB measured and calculated; seconds of a worst step, % of it sampling, of a typical one) of one rehearsal.

    In a process of its own; raises RuntimeError with its last line.
    """
    import torch

    here = ["--model.pretrained_model_name_or_path", f"{folder}/model", "--dataset.path", "demo/questions.jsonl"]
    here += ["--training.output_dir", f"{folder}/run", "--rehearse"]
    if not torch.cuda.is_available():
        here += ["--training.use_cpu", "true", "--training.bf16", "false", "--training.fp16", "false"]
        here += ["--model.dtype", "float32"]
    cap = f"import torch; torch.cuda.set_per_process_memory_fraction({cap_gb}e9 / torch.cuda.mem_get_info()[1]); "
    main = "import sys, train_grpo; from harness.end import exit_status; sys.exit(exit_status(train_grpo.main))"
    code = f"{cap if cap_gb else ''}{main}"
    command = [sys.executable, "-c", code, *row, *here]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["killed"])[-1])
    return [float(figure) for line in (MEMORY, SECONDS) for figure in line.search(done.stdout).groups()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--shape", choices=SHAPES, default="tinyswallow")
    parser.add_argument("--cap-gb", type=float)
    options = parser.parse_args()
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"no such row: {unknown[0]!r}; there are {', '.join(ROWS)}")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        build_model(options.shape, f"{folder}/model")
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
        print(f"{platform.machine()}, {os.cpu_count()} cores; {versions}; shape {options.shape}\n")
        print("| row | typical step, s | worst step, s | sampling, s | peak GB | calculated GB | article's hours |")
        print("|---|---|---|---|---|---|---|")
        for row in options.rows or ROWS:
            try:
                peak, calculated, worst, share, typical = rehearsed(ROWS[row], folder, options.cap_gb)
            except RuntimeError as error:
                print(f"| {row} | {error} | | | | | |", flush=True)
                failed = True
                continue
            seconds = f"{typical:.2f} | {worst:.2f} | {worst * share / 100:.2f}"
            hours = f"{1250 * typical / 3600:.2f} – {1250 * worst / 3600:.2f}"
            print(f"| {row} | {seconds} | {peak:.1f} | {calculated:.1f} | {hours} |", flush=True)
    sys.exit("not every row ran" if failed else None)


if __name__ == "__main__":
    main()
