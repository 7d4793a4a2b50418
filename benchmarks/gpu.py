"""What a GPU does differently: python benchmarks/gpu.py

On random weights in TinySwallow's shape (--shape tiny: for a CPU), in two minutes:
- one forward and backward pass of so many rows and tokens: below some size only the launching of its kernels counts;
- the same with cuDNN's attention and without: values that are not finite, a shape seen for the first time;
- sampling: with a cache that grows, with a static one that is compiled, and by continuous batching.
"""

import argparse
import tempfile
import time

import torch
from throughput import SHAPES, build_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

SIZES = ((1, 64), (4, 64), (16, 64), (16, 128), (16, 256), (16, 512), (64, 256))
LENGTHS = (64, 100, 128, 192, 250, 320)


def one_pass(model: PreTrainedModel, rows: int, tokens: int) -> tuple[float, int]:
    """(milliseconds of a forward and a backward pass, values of the gradient that are not finite)."""
    ids = torch.randint(10, 1000, (rows, tokens), device=model.device)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : row * tokens // (2 * rows)] = 0
    begin = now()
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    (hidden.float() * mask[..., None]).pow(2).mean().backward()
    taken = now() - begin
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    bad = sum(int((~gradient.isfinite()).sum()) for gradient in gradients)
    model.zero_grad()
    return taken * 1e3, bad


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def sampling(model: PreTrainedModel, tokenizer, rows: int, tokens: int) -> None:
    ids = torch.randint(10, 1000, (rows, 24), device=model.device)
    usual = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": True, "temperature": 0.9, "top_k": 0}
    usual |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    for what, more in (
        ("a cache that grows", {"disable_compile": True}),
        ("a static cache, compiled", {"cache_implementation": "static"}),
        ("continuous batching", None),
    ):
        for turn in ("first", "again"):
            begin = now()
            with torch.no_grad():
                if more is None:
                    model.generate_batch(ids.tolist(), generation_config=GenerationConfig(**usual), progress_bar=False)
                else:
                    model.generate(
                        ids, attention_mask=torch.ones_like(ids), generation_config=GenerationConfig(**usual, **more)
                    )
            print(
                f"| {rows} x {tokens}, {what}, {turn} | {(now() - begin) / tokens * 1e3:.1f} ms per token |", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tinyswallow")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        build_model(options.shape, folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).train()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    one_pass(model, 2, 50)
    for cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        for tokens in LENGTHS:
            (first, _), (again, bad) = one_pass(model, 4, tokens), one_pass(model, 4, tokens)
            how = "cuDNN's attention" if cudnn else "without it"
            print(f"| 4 x {tokens}, {how} | first {first:.0f} ms, then {again:.0f} | {bad:,} not finite |", flush=True)
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for rows, tokens in SIZES:
            one_pass(model, rows, tokens)
            milliseconds = sorted(one_pass(model, rows, tokens)[0] for _ in range(5))[2]
            print(f"| {rows} x {tokens}, checkpointing {checkpointing} | {milliseconds:.0f} ms |", flush=True)
    sampling(model.eval(), tokenizer, 64, 64)


if __name__ == "__main__":
    main()
