"""Rehearse: measures in a minute what --check calculates: signal, memory, seconds. Nothing is kept without --keep.

Two generation batches of the untrained policy, sampled and scored as in the run, show what the rewards can teach. Then
whole steps as in the run, but on the longest prompts and with completions of full length, show its worst case.
"""

import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import ProgressCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from harness.before.footprint import CUDA_CONTEXT, GB, moved_share, rounded_away, stochastic_rounding
from harness.before.forecast import forecast, in_words
from harness.before.plan import Plan
from harness.errors import SMALLER, RunError, UserError, out_of_memory
from harness.reward import FLAT
from harness.run_folder import RunFolder
from harness.settings import Settings, versions

WORST_STEPS = 3


@contextmanager
def rehearsal(plan: Plan, folder: RunFolder) -> Iterator[RunFolder]:
    """The run's folder; with --rehearse a temporary one, no tracker or Hub, and a lack of memory is a UserError."""
    args = plan.args
    if not plan.settings.options.rehearse:
        yield folder
        return
    if args.deepspeed_plugin:
        problem = "DeepSpeed trains once in a process, a rehearsal does twice"
        raise UserError(f"--rehearse: {problem}; use recipes/launch/fsdp2.yaml, which needs about as much memory")
    args.report_to, args.push_to_hub, args.eval_on_start = [], False, False
    args.output_dir, keep = tempfile.mkdtemp(), False
    try:
        yield RunFolder(args.output_dir)
    except RunError as error:
        if keep := not out_of_memory(error):
            raise  # the folder stays, as its error.log has the traceback
        raise UserError(f"rehearsal: out of memory ({str(error)[:120]}); {SMALLER}, or try --fit") from error
    finally:
        if not keep:
            shutil.rmtree(args.output_dir)


class Clock(TrainerCallback):
    """Seconds of each step and of the sampling in it, memory after it, and its logs."""

    def __init__(self):
        self.seconds: list[float] = []
        self.sampling: list[float] = []
        self.memory: list[int] = []
        self.logs: list[dict[str, float]] = []
        self.sampled = 0.0

    def timed(self, generate: Callable) -> Callable:
        """`generate`, whose seconds count as sampling."""

        def call(*args, **kwargs):
            begin = _now()
            result = generate(*args, **kwargs)
            self.sampled += _now() - begin
            return result

        return call

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin = _now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(_now() - self.begin)
        self.sampling.append(self.sampled)
        self.memory.append(_memory_in_use(args.use_vllm))
        self.begin, self.sampled = _now(), 0.0

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def rehearse(trainer: GRPOTrainer, plan: Plan) -> None:
    """Train a few steps and print what the run would be like. Every process has to call this."""
    args, settings = trainer.args, plan.settings
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(clock := Clock())
    sampler = trainer.vllm_generation if trainer.use_vllm else trainer.model
    sampler.generate = clock.timed(sampler.generate)
    args.save_strategy, args.eval_strategy, args.logging_steps = "no", "no", 1
    figures = {"signal": _what_rewards_teach(trainer, plan, clock)} | _worst(trainer, plan, clock)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    figures |= {
        "steps": plan.steps,
        "hours": sorted(plan.steps * figures[key] / 3600 for key in ("typical_step_s", "worst_step_s")),
        "calculated_bytes": sum(plan.memory.values()),
        "moved_share": moved_share(trained, args.learning_rate),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        **versions(),
    }
    if trainer.is_world_process_zero():
        _print(figures, args, settings.options.price)
        if settings.options.keep:
            figures_file(settings).parent.mkdir(parents=True, exist_ok=True)
            figures_file(settings).write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")
            print(f"kept in {figures_file(settings)}")


def figures_file(settings: Settings) -> Path:
    """Where --keep writes the figures."""
    return Path(f"{settings.training['output_dir'].rstrip('/')}-rehearsal.json")


def _what_rewards_teach(trainer: GRPOTrainer, plan: Plan, clock: Clock) -> dict[str, Any]:
    """Two generation batches at a learning rate of 0; TRL writes their completions and rewards as parquet."""
    args, rate = trainer.args, trainer.args.learning_rate
    args.learning_rate, trainer.log_completions, trainer.num_completions_to_print = 0.0, True, 0
    per_batch = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps  # steps
    args.max_steps = max(1, round(2 * per_batch))
    folder = Path(args.output_dir) / "completions"
    folder.mkdir(exist_ok=True)
    trainer.train()
    args.learning_rate, trainer.log_completions = rate, False
    if not trainer.is_world_process_zero():
        return {}
    files = sorted(folder.iterdir())[:: max(1, round(per_batch))]
    rows = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    rewards = {}
    for name in trainer.reward_func_names:
        # Of a group to which the reward does not apply all is NaN, which pandas leaves out of its means.
        groups = pd.DataFrame(rows[name].to_numpy(dtype=float).reshape(-1, args.num_generations))
        best, mean, spread = groups.max(axis=1), groups.mean(axis=1), groups.max(axis=1) - groups.min(axis=1)
        flat, climb = (spread.dropna() < FLAT).mean(), (best - mean).mean()
        found = {"mean": mean.mean(), "std": groups.stack().std(ddof=0), "flat": flat, "climb": climb}
        rewards[name] = {key: float(value) for key, value in found.items()}
    total = (rows[trainer.reward_func_names].fillna(0) * args.reward_weights).sum(axis=1)
    order = total.sort_values(ascending=False).index
    places = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    shown = {place: (float(total[i]), rows.completion[i][-1]["content"]) for place, i in places.items()}
    cut = statistics.mean(log["completions/clipped_ratio"] for log in clock.logs if "completions/clipped_ratio" in log)
    found = {"rewards": rewards, "cut": cut, "completions": shown, "first_step": clock.logs[0]}
    fixed = forecast(rows, plan.rewards, plan.data.train, args.num_generations, plan.policy.tokenizer, trainer.state)
    return found | {"forecast": fixed}


def _worst(trainer: GRPOTrainer, plan: Plan, clock: Clock) -> dict[str, Any]:
    args, before = trainer.args, len(clock.seconds)
    typical = statistics.median(clock.seconds)
    longest = np.argsort(plan.data.lengths)[-plan.prompts_a_batch :]
    trainer.train_dataset = plan.data.train.select(np.resize(longest, plan.prompts_a_batch * (WORST_STEPS + 1)))
    if trainer.use_vllm:
        trainer.vllm_generation.generation_kwargs["min_tokens"] = args.max_completion_length
    else:
        trainer.generation_config.min_new_tokens = args.max_completion_length
    args.max_steps = WORST_STEPS * max(1, args.steps_per_generation // args.gradient_accumulation_steps)
    trainer.optimizer = trainer.lr_scheduler = None  # made anew, with the run's own learning rate
    trainer.train()
    worst = torch.tensor([[max(clock.memory), statistics.mean(clock.seconds[before:])]], dtype=torch.float64)
    worst = trainer.accelerator.gather(worst.to(args.device)).max(0).values.tolist()
    return {
        "typical_step_s": typical,
        "worst_step_s": worst[1],
        "worst_sampling_s": statistics.mean(clock.sampling[before:]),
        "peak_bytes": int(worst[0]),
        "growth_bytes": clock.memory[-1] - clock.memory[before],
        "host_bytes": _host_memory(),
        "worst_length": max(log.get("completions/mean_length", 0) for log in clock.logs),
        "kl": max((log["kl"] for log in clock.logs if log.get("kl")), default=0.0),
    }


def _print(figures: dict[str, Any], args: GRPOConfig, price: float | None) -> None:
    signal, peak, (low, high) = figures["signal"], figures["peak_bytes"], figures["hours"]
    print("\nSignal: two generation batches of the untrained policy")
    for name, reward in signal["rewards"].items():
        line = f"  {name}: {reward['mean']:.3g} (std {reward['std']:.2g}), all alike in {reward['flat']:.0%} of groups"
        line += f"; the best of a group is {reward['climb']:.2g} above its mean"
        print(line + ("; it can teach next to nothing until completions change" if reward["flat"] > 0.9 else ""))
    print(f"  {signal['cut']:.0%} of completions are cut at {args.max_completion_length} tokens")
    for place, (reward, completion) in signal["completions"].items():
        print(f"  {place}, {reward:.2f}: {completion}".replace("\n", "⏎"))
    print(f"  {in_words(signal['forecast'])}")
    total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    room = f"{(total - peak) / GB:.1f} GB of {total / GB:.0f} are left" if total else "of this process, on a CPU"
    print("Worst case: whole steps on the longest prompts, completions of full length")
    print(f"  memory: {peak / GB:.1f} GB measured, {figures['calculated_bytes'] / GB:.1f} GB calculated; {room}")
    print(f"  host memory {figures['host_bytes'] / GB:.1f} GB")
    if (growth := figures["growth_bytes"] / GB) > 0.05:
        print(
            f"  {growth:.2f} GB more after these steps than after the first: usual at the start, a leak if it goes on"
        )
    worst, typical = figures["worst_step_s"], figures["typical_step_s"]
    share = figures["worst_sampling_s"] / worst
    print(f"  a step {worst:.2f} s, {share:.0%} of it sampling; a typical one {typical:.2f} s")
    cost = f", {low * price:.2f} to {high * price:.2f} at {price:g} an hour" if price else ""
    print(f"The run: {figures['steps']:,} steps in {low:.2g} to {high:.2g} hours on this {figures['device']}{cost}")
    if figures["moved_share"] < 0.5 and not stochastic_rounding(args):
        print(f"warning: {rounded_away(figures['moved_share'])}")
    if figures["kl"] > 1:
        print(f"warning: KL reached {figures['kl']:.1f} a token in these few steps; lower training.learning_rate")


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory_in_use(vllm: bool) -> int:
    """Bytes that this process has taken of its GPU at most; without a GPU, of the machine's memory.

    vLLM's are seen by the driver alone, which counts other programs too.
    """
    if not torch.cuda.is_available():
        return _host_memory()
    free, total = torch.cuda.mem_get_info()
    return total - free if vllm else torch.cuda.max_memory_reserved() + int(CUDA_CONTEXT)


def _host_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
