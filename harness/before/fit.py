"""Fit: rehearses micro-batches of several sizes, each in a process of its own, and says which is the fastest."""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from trl import GRPOConfig

from harness.before.footprint import GB
from harness.errors import UserError
from harness.settings import Settings


def fit(settings: Settings, arguments: list[str] | None) -> None:
    """Rehearse micro-batches of 1, 2, 4, ..., with the same completions a step."""
    if "LOCAL_RANK" in os.environ:
        raise UserError("--fit: starts its own processes, one at a time; run it with plain python")
    training, tried = settings.training, []
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    completions = math.prod(training.get(name, getattr(GRPOConfig, name)) for name in names)
    for batch in (2**i for i in range(completions.bit_length()) if completions % 2**i == 0):
        with tempfile.TemporaryDirectory() as folder:
            sizes = zip((*names, "output_dir"), (batch, completions // batch, f"{folder}/try"), strict=True)
            values = [f"--training.{name}={value}" for name, value in sizes]
            rest = [argument for argument in arguments or sys.argv[1:] if argument not in ("--fit", "--keep")]
            command = [sys.executable, sys.argv[0], *rest, "--rehearse", "--keep", *values]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["killed"])[-1]
                if done.returncode > 0 and "out of memory" not in last:
                    raise UserError(last.removeprefix("error: "))
                print(f"{batch} x {completions // batch}: {last}")
                break
            figures = json.loads(Path(f"{folder}/try-rehearsal.json").read_text(encoding="utf-8"))
        tried.append((figures["worst_step_s"], batch))
        memory = figures["peak_bytes"] / GB
        print(f"{batch} x {completions // batch}: {tried[-1][0]:.2f} s a step, {memory:.1f} GB", flush=True)
    if not tried:
        raise UserError("rehearsal: not even a micro-batch of 1 fits; use recipes/lora.yaml, or a larger GPU")
    batch = min(tried)[1]
    print("the fastest of those that fit, to lay over your settings:\ntraining:")
    print(f"  per_device_train_batch_size: {batch}\n  gradient_accumulation_steps: {completions // batch}")
