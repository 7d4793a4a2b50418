"""What the checks, the report and the checkpoints add to a step and to a save: python benchmarks/safety.py

Times our own calls inside two real runs: the demo's, for a step, and one of a random policy of 100 million parameters
(1.2 GB a checkpoint), for a save. Both need `make demo`'s model, for its tokenizer. CPU only.
"""

import platform
import sys
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOTrainer

import harness.checkpoints
import harness.guard
import train_grpo
from harness.checkpoints import Checkpoints
from harness.report import Progress, Report
from harness.trainer import Trainer
from harness.watch import Watch

SECONDS: dict[str, float] = defaultdict(float)
STEPS = 150  # the demo's
DEMO = ["--config", "demo/config.yaml", "--samples.held_out", "0", "--training.output_dir"]


def timed(owner, name: str, label: str) -> None:
    """Add the time spent in `owner.name` to SECONDS[label]."""
    function = getattr(owner, name)

    def wrapper(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            SECONDS[label] += time.perf_counter() - begin

    setattr(owner, name, wrapper)


def main() -> None:
    for owner, name, label in [
        (harness.guard, "_checked", "rewards checked"),
        (Watch, "on_log", "watch"),
        (Watch, "on_step_end", "watch"),
        (Checkpoints, "on_step_end", "signals"),
        (Trainer, "_get_grad_norm", "finite, with upstream's norm"),
        (GRPOTrainer, "_get_grad_norm", "upstream's norm"),
        (Report, "on_log", "curves"),
        (Progress, "on_log", "log lines"),
        (GRPOTrainer, "_inner_training_loop", "training"),
        (GRPOTrainer, "_save_checkpoint", "upstream's save, with the card"),
        (Report, "write", "card"),
        (Trainer, "_save_checkpoint", "our save"),
        (Checkpoints, "on_save", "sealing, waited for"),
        (harness.checkpoints, "seal", "sealing, beside the training"),
    ]:
        timed(owner, name, label)
    with tempfile.TemporaryDirectory() as folder:
        train_grpo.main([*DEMO, f"{folder}/demo", "--training.max_steps", str(STEPS), "--training.save_strategy", "no"])
        step = dict(SECONDS)
        SECONDS.clear()
        tokenizer = AutoTokenizer.from_pretrained("demo/model")
        shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
        config = Qwen2Config(
            vocab_size=len(tokenizer), num_key_value_heads=8, tie_word_embeddings=True, **shape, dtype=torch.float32
        )
        model = Qwen2ForCausalLM(config)
        model.save_pretrained(f"{folder}/model")
        tokenizer.save_pretrained(f"{folder}/model")
        small = ["--training.per_device_train_batch_size", "8", "--training.steps_per_generation", "1"]
        small += ["--training.max_completion_length", "8", "--training.max_steps", "4", "--training.save_steps", "1"]
        model_path = ["--model.pretrained_model_name_or_path", f"{folder}/model"]
        train_grpo.main([*DEMO, f"{folder}/saves", *small, *model_path])
        save = dict(SECONDS)
        size = sum(p.stat().st_size for p in Path(f"{folder}/saves/checkpoint-4").iterdir())

    finite = step["finite, with upstream's norm"] - step["upstream's norm"]
    added = {key: step[key] for key in ("rewards checked", "watch", "signals", "curves", "log lines")} | {
        "finite": finite
    }
    total, ours = step["training"], sum(added.values())
    print(f"\n{platform.machine()}, {torch.get_num_threads()} threads, torch {version('torch')}, trl {version('trl')}")
    print(f"a step: {total / STEPS:.4f} s, ours {ours / STEPS:.5f} s = {ours / total:.2%} of it")
    print("        " + ", ".join(f"{key} {value / total:.3%}" for key, value in added.items()))
    upstream = save["upstream's save, with the card"] - save["card"]
    ours = save["our save"] - upstream + save["sealing, waited for"]
    print(
        f"a save: {size / 1e9:.2f} GB, {upstream / 4:.2f} s; ours {ours / 4:.3f} s = {ours / upstream:.1%} of it (card "
        f"{save['card'] / 4:.3f} s, waited for an earlier sealing {save['sealing, waited for'] / 4:.3f} s)"
    )
    print(f"        sealing, beside the training: {save['sealing, beside the training'] / 4:.2f} s")


if __name__ == "__main__":
    main()
