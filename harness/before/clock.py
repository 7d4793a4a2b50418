"""Clock: what a few steps take, as they are trained: seconds, memory, and how far they are."""

import resource
import sys
import time
from collections.abc import Callable

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from harness.before.footprint import CUDA_CONTEXT


class Clock(TrainerCallback):
    """Seconds of each step and of the sampling in it, memory after it, and its logs; a bar for each training.

    `doing`: what the bar says that it is at.
    """

    def __init__(self):
        self.seconds: list[float] = []
        self.sampling: list[float] = []
        self.memory: list[int] = []
        self.logs: list[dict[str, float]] = []
        self.sampled = 0.0
        self.doing, self.bar = "", None

    def timed(self, generate: Callable) -> Callable:
        """`generate`, whose seconds count as sampling."""

        def call(*args, **kwargs):
            begin = _now()
            result = generate(*args, **kwargs)
            self.sampled += _now() - begin
            return result

        return call

    def on_train_begin(self, args, state, control, **kwargs):
        # Of several processes only the first has one: the others' environment has TQDM_DISABLE.
        self.bar = tqdm(total=state.max_steps, desc=self.doing, unit="step", leave=False)
        self.begin = _now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(_now() - self.begin)
        self.sampling.append(self.sampled)
        self.memory.append(memory_in_use(args.use_vllm))
        self.bar.update()
        self.begin, self.sampled = _now(), 0.0

    def on_train_end(self, *args, **kwargs):
        self.close()

    def close(self) -> None:
        """Remove the bar, or an error's line would stand behind it."""
        if self.bar is not None:
            self.bar.close()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def memory_in_use(vllm: bool) -> int:
    """Bytes that this process has taken of its GPU at most; without a GPU, of the machine's memory.

    vLLM's are seen by the driver alone, which counts other programs too.
    """
    if not torch.cuda.is_available():
        return host_memory()
    free, total = torch.cuda.mem_get_info()
    return total - free if vllm else torch.cuda.max_memory_reserved() + int(CUDA_CONTEXT)


def host_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
