"""What the checks, the report and the checkpoints add to a step and to a save: python benchmarks/safety.py

Times our own functions inside two real runs on the CPU: the demo, for a step, and a random policy of 100 million
parameters (1.2 GB a checkpoint), for a save. Needs the model that `make demo` builds.
"""

import functools
import platform
import statistics
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

import harness.during.checkpoints
import harness.reward
import train_grpo
from harness.after.report import Report
from harness.during.checkpoints import Checkpoints
from harness.during.progress import Progress
from harness.during.trainer import Trainer
from harness.during.watch import Watch

SECONDS: dict[str, list[float]] = defaultdict(list)  # of each call, by label
STEPS = 150  # the demo's
DEMO = ["--config", "demo/config.yaml", "--samples.held_out", "0", "--training.output_dir"]
IN_A_STEP = [
    (Checkpoints, "on_pre_optimizer_step", "finite gradient"),
    (Checkpoints, "on_step_end", "signals"),
    (Watch, "on_log", "watch"),
    (Report, "on_log", "curves"),
    (Progress, "on_log", "log lines"),
]
IN_A_SAVE = [
    (GRPOTrainer, "save_model", "upstream's save_model"),
    (Trainer, "save_model", "our save_model"),
    (GRPOTrainer, "_save_checkpoint", "checkpoint"),
    (Checkpoints, "on_save", "waiting for the hashing"),
    (Report, "on_save", "card"),
    (harness.during.checkpoints, "seal", "hashing"),
]


def timed(function, label: str):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        begin = time.perf_counter()
        result = function(*args, **kwargs)
        SECONDS[label].append(time.perf_counter() - begin)
        return result

    return wrapper


def build_model(folder: str) -> None:
    """100M random parameters, and the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained("demo/model")
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
    config = Qwen2Config(**shape, num_key_value_heads=8, vocab_size=len(tokenizer), tie_word_embeddings=True)
    Qwen2ForCausalLM(config).to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    for owner, name, label in [*IN_A_STEP, *IN_A_SAVE, (GRPOTrainer, "train", "training")]:
        setattr(owner, name, timed(getattr(owner, name), label))
    reward, for_trl = harness.reward.Reward, harness.reward.Reward.for_trl
    reward._ask = timed(reward._ask, "rewards")
    reward.for_trl = lambda self: timed(for_trl(self), "rewards, checked")
    with tempfile.TemporaryDirectory() as folder:
        train_grpo.main([*DEMO, f"{folder}/demo", "--training.max_steps", str(STEPS), "--training.save_strategy", "no"])
        step = {label: sum(seconds) / STEPS for label, seconds in SECONDS.items()}
        SECONDS.clear()
        build_model(f"{folder}/model")
        small = ["--training.per_device_train_batch_size", "8", "--training.max_completion_length", "8"]
        small += ["--training.max_steps", "4", "--training.save_steps", "1"]
        small += ["--model.pretrained_model_name_or_path", f"{folder}/model"]
        train_grpo.main([*DEMO, f"{folder}/saves", *small])
        save = {label: statistics.mean(seconds) for label, seconds in SECONDS.items()}
        size = sum(file.stat().st_size for file in Path(f"{folder}/saves/checkpoint-4").iterdir())

    print(f"\n{platform.machine()}, {torch.get_num_threads()} threads, torch {version('torch')}, trl {version('trl')}")
    ours = {label: step[label] for _, _, label in IN_A_STEP}
    ours["rewards checked"] = step["rewards, checked"] - step["rewards"]
    total = step["training"]
    print(f"a step: {total:.4f} s, of which ours {sum(ours.values()):.5f} s = {sum(ours.values()) / total:.2%}")
    print("        " + ", ".join(f"{label} {seconds / total:.3%}" for label, seconds in ours.items()))
    finite = save["our save_model"] - save["upstream's save_model"]
    ours = {"finite weights": finite} | {label: save[label] for label in ("waiting for the hashing", "card")}
    upstream = save["checkpoint"] - finite
    added = sum(ours.values())
    print(f"a save: {size / 1e9:.2f} GB, {upstream:.2f} s; ours {added:.3f} s = {added / upstream:.1%} of it")
    print("        " + ", ".join(f"{label} {seconds:.3f} s" for label, seconds in ours.items()))
    print(f"        hashing, beside the training: {save['hashing']:.2f} s")


if __name__ == "__main__":
    main()
