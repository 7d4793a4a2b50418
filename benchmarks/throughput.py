"""Where the article's hours go, and how much each change saves: python benchmarks/throughput.py [--shape tiny]

A policy of random weights in TinySwallow's exact shape answers prompts of 30 to 60 tokens. The lengths of completions
come from one random list (mean about 120, at most 256), so that every row of the table does the same work. Each run is
a process of its own: load, one generation batch to warm up, one that is timed; the rows take turns. Times are seconds
for 64 completions, which is one optimizer step of the article; `job` is 1,250 of them.
Without a CUDA GPU use --shape tiny. --rows picks rows by name; the file of a recipe is a row too, and --cap-gb limits
the GPU's memory: benchmarks/throughput.py --rows recipes/24gb.yaml --cap-gb 24
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]
SHAPES = {  # vocabulary, width, MLP, layers, heads, key/value heads; parameters come to 1.54 billion and 1.5 million
    "tinyswallow": (151_936, 1536, 8960, 28, 12, 2),
    "tiny": (4_096, 128, 512, 4, 4, 2),
}
CAP, COMPLETIONS = 256, 64
# What a row changes in config.yaml. "padding": False uses our trainer instead of TRL's; "fixed": True makes each
# completion 256 tokens long.
ALONE = {
    "no padding": {"padding": False},
    "gradient checkpointing off": {"training.gradient_checkpointing": False},
    "64 x 1 instead of 16 x 4": {
        "training.per_device_train_batch_size": 64,
        "training.gradient_accumulation_steps": 1,
    },
}
TOGETHER = {key: value for change in ALONE.values() for key, value in change.items()}
ROWS = {
    "as written": {},
    "as written, all of 256 tokens": {"fixed": True},
    **ALONE,
    "float32 weights": {"model.dtype": "float32"},
    "all of these but float32": TOGETHER,
    "the same, all of 256 tokens": {**TOGETHER, "fixed": True},
    "no padding, 256 a generation call": {"padding": False, "training.steps_per_generation": 16},
    "no padding, 1024 a generation call": {"padding": False, "training.steps_per_generation": 64},
    "no padding, vLLM colocate": {
        "padding": False,
        "training.use_vllm": True,
        "training.vllm_mode": "colocate",
        "training.vllm_gpu_memory_utilization": 0.3,
    },
}


def build_model(shape: str, folder: str) -> None:
    """Random weights and the demo's tokenizer, as from_pretrained opens them."""
    import build
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    vocabulary, width, mlp, layers, heads, kv_heads = SHAPES[shape]
    rows = [json.loads(line) for line in (ROOT / "demo/questions.jsonl").open(encoding="utf-8")]
    tokenizer = build.build_tokenizer(rows)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    print(f"{model.num_parameters():,} parameters")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def drawn_lengths(fixed: bool) -> list[int]:
    """Completion lengths, the same list for every row: log-normal, cut at CAP, mean about 120."""
    import numpy as np

    if fixed:
        return [CAP] * 4096
    return np.clip(np.random.default_rng(0).lognormal(4.6, 0.65, 4096), 8, CAP).astype(int).tolist()


def one_run(row: str, folder: str, cap_gb: float | None) -> dict:
    """One row's timed generation batch; everything per 64 completions. In a process of its own."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from harness.loading import usable_attention
    from harness.settings import read_settings
    from harness.trainer import Trainer

    cuda = torch.cuda.is_available()
    if cap_gb:
        torch.cuda.set_per_process_memory_fraction(cap_gb * 1e9 / torch.cuda.get_device_properties(0).total_memory)
    change = ROWS.get(row, {"padding": False, "fixed": True})  # a recipe is no row of the table
    chosen = {key: value for key, value in change.items() if "." in key}
    if not cuda:
        chosen |= {"training.use_cpu": True, "training.bf16": False, "training.fp16": False, "model.dtype": "float32"}
    recipe = [] if row in ROWS else ["--config", row]
    settings = read_settings([*recipe, *(f"--{key}={value}" for key, value in chosen.items())])
    training = settings.training
    batches = training.get("steps_per_generation") or training["gradient_accumulation_steps"]
    completions = training["per_device_train_batch_size"] * batches  # of a generation batch
    updates = batches // training["gradient_accumulation_steps"]  # optimizer steps on it
    training |= {
        "max_steps": 2 * updates,
        "save_strategy": "no",
        "logging_steps": 10_000,
        "output_dir": folder + "/out",
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)
    attention, _ = usable_attention(settings.model["attn_implementation"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=settings.model["dtype"], attn_implementation=attention)
    text = tokenizer("".join(row["query"] for row in map(json.loads, (ROOT / "demo/questions.jsonl").open())))
    cuts = [(13 * i % 1000, 25 + 7 * i % 30) for i in range(4096 // 8)]  # the chat template adds some ten tokens
    prompts = [tokenizer.decode(text["input_ids"][begin : begin + length]) for begin, length in cuts]
    trainer = (GRPOTrainer if change.get("padding", True) else Trainer)(
        model=model,
        reward_funcs=[lambda completions, **_: [float(i % 7) for i in range(len(completions))]],
        args=GRPOConfig(**training),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]),
        processing_class=tokenizer,
        peft_config=settings.lora and LoraConfig(**settings.lora),
    )
    lengths = drawn_lengths(change.get("fixed", False))

    class Impose(LogitsProcessor):
        """Ends row i with the token lengths[i], and no sooner."""

        def __init__(self):
            self.step = 0
            self.ends = torch.tensor(lengths[:completions], device=model.device)
            self.others = torch.arange(model.config.vocab_size, device=model.device) != tokenizer.eos_token_id

        def __call__(self, input_ids, scores):
            self.step += 1
            ended = self.ends[: len(scores)] <= self.step
            scores[:, tokenizer.eos_token_id] = torch.where(ended, 0.0, -torch.inf)
            scores[ended] = scores[ended].masked_fill(self.others, -torch.inf)
            return scores

    generate = model.generate
    model.generate = lambda *args, **kwargs: generate(*args, logits_processor=LogitsProcessorList([Impose()]), **kwargs)
    if training.get("use_vllm"):
        of_vllm = trainer.vllm_generation.llm.generate

        def of_given_lengths(requests, sampling_params, **kwargs):
            each = [sampling_params.clone() for _ in requests]
            for one, length in zip(each, lengths, strict=False):
                one.max_tokens, one.ignore_eos = length, True
            return of_vllm(requests, sampling_params=each, **kwargs)

        trainer.vllm_generation.llm.generate = of_given_lengths

    seconds: dict[str, float] = defaultdict(float)

    def now() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(owner, name: str, phase: str, only=lambda: True) -> None:
        method = getattr(owner, name)

        def wrapper(*args, **kwargs):
            if not only():
                return method(*args, **kwargs)
            begin = now()
            result = method(*args, **kwargs)
            seconds[phase] += now() - begin
            return result

        setattr(owner, name, wrapper)

    timed(trainer, "_generate_single_turn", "generate")
    timed(trainer, "_get_per_token_logps_and_entropies", "reference", lambda: not torch.is_grad_enabled())
    timed(trainer, "training_step", "step")

    class Clock(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            self.begin = now()

        def on_optimizer_step(self, *args, **kwargs):
            seconds["optimizer"] += now() - self.begin

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == updates:  # warmed up
                self.start = now()
                seconds.clear()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2 * updates:
                seconds["all"] = now() - self.start

    trainer.add_callback(Clock())
    began = now()
    trainer.train()
    share = COMPLETIONS / completions
    seconds["train"] = seconds.pop("step") - seconds["generate"] - seconds["reference"]
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    warm_up = now() - began - seconds["all"]
    tokens = sum(lengths[:completions]) / completions
    return {key: value * share for key, value in seconds.items()} | {"GB": peak / 1e9, "warm": warm_up, "mean": tokens}


def roofline(shape: str, mean: float, teraflops: float, terabytes: float, ours: float) -> None:
    """Print the least time the article's job can take on a device, and the arithmetic."""
    vocabulary, width, mlp, layers, heads, kv_heads = SHAPES[shape]
    head = width // heads
    matrices = layers * (2 * width * width + 2 * width * kv_heads * head + 3 * width * mlp) + vocabulary * width
    completions, prompt = 80_000, 55
    tokens = completions * (mean + prompt)
    flops = {"training": 6 * matrices * tokens, "reference": 2 * matrices * tokens, "generation": 2 * matrices * tokens}
    print(f"\nroofline at {teraflops:g} TFLOP/s and {terabytes:g} TB/s, {matrices / 1e9:.2f} B multiplied weights:")
    total = 0.0
    for phase, count in flops.items():
        total += count / teraflops / 1e12
        factor = count / matrices / tokens
        print(f"  {phase}: {factor:.0f} x weights x {tokens / 1e6:.1f} M tokens = {count / teraflops / 1e12:.0f} s")
    reads = completions / 1024 * CAP * matrices * 2 / terabytes / 1e12
    print(f"  reading bfloat16 weights each token, 1,024 sequences a call: {reads:.0f} s")
    print(f"  together {total + reads:.0f} s; the fastest row's job is {ours / (total + reads):.1f} times that")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tinyswallow")
    parser.add_argument("--rows", nargs="+", metavar="ROW", default=[*ROWS])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cap-gb", type=float)
    parser.add_argument("--tflops", type=float, default=790, help="of the device, dense bfloat16 (H200: 790)")
    parser.add_argument("--tbps", type=float, default=4.3, help="memory bandwidth in TB/s (H200: 4.3)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return print(json.dumps(one_run(*options.child, options.cap_gb)))
    if unknown := [row for row in options.rows if row not in ROWS and not (ROOT / row).is_file()]:
        parser.error(f"--rows: neither a row nor a recipe: {unknown[0]!r}; rows: {', '.join(ROWS)}")
    import torch

    if options.cap_gb and not torch.cuda.is_available():
        parser.error("--cap-gb: there is no GPU to cap")
    rows = [row for row in options.rows if "vLLM" not in row or find_spec("vllm")]
    for row in set(options.rows) - set(rows):
        print(f"{row}: left out, vLLM is not installed")
    results: dict[str, list[dict]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        build_model(options.shape, folder)
        for _ in range(options.repeats):
            for row in rows:
                child = [sys.executable, __file__, "--child", row, folder]
                child += ["--cap-gb", str(options.cap_gb)] if options.cap_gb else []
                done = subprocess.run(child, cwd=ROOT, capture_output=True, text=True)
                if done.returncode:
                    print(f"{row}: failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
                    continue
                results[row].append(json.loads(done.stdout.splitlines()[-1]))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, CPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    print(f"\n{device}; {versions}; {date.today()}; shape {options.shape}; median of {options.repeats}, range of `all`")
    phases = ("generate", "reference", "train", "optimizer", "all")
    print("| row | " + " | ".join(phases) + " | range | warm-up | peak GB | job |\n" + "|---" * 10 + "|")
    jobs = {}
    for row, runs in results.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        every = [run["all"] for run in runs]
        jobs[row] = 1250 * middle["all"]
        cells = [f"{middle[phase]:.3f}" for phase in phases] + [f"{min(every):.3f} – {max(every):.3f}"]
        print(
            f"| {row} | " + " | ".join(cells) + f" | {middle['warm']:.0f} s | {middle['GB']:.1f} | {clock(jobs[row])} |"
        )
    if jobs and options.shape == "tinyswallow":
        mean = min(run["mean"] for runs in results.values() for run in runs)
        roofline(options.shape, mean, options.tflops, options.tbps, min(jobs.values()))
    if len(results) < len(rows):
        sys.exit("not every row ran")


def clock(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
