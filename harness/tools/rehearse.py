"""Rehearse: measures in a minute what --check calculates: signal, memory, seconds. Nothing is kept.

Two generation batches of the untrained policy, sampled and scored as in the run, show what the rewards can teach. Then
whole steps as in the run, but on the longest prompts and with completions of full length, show its worst case.
"""

import math
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback

from harness.before.cheats import cheats
from harness.before.footprint import CUDA_CONTEXT, GB
from harness.before.plan import Plan
from harness.before.policy import load_reward_models
from harness.during.trainer import Trainer
from harness.errors import SMALLER, RunError, UserError, counted, one_line, out_of_memory
from harness.reward import FLAT, total
from harness.run_folder import RunFolder
from harness.tools.read import records

WORST_BATCHES = 3  # of generations
MUCH_CUT = 0.05  # of the completions


def rehearse(plan: Plan) -> None:
    """Train a few steps in a folder of their own and print what the run would be like. Every process has to call this.

    Raises UserError where memory is too little, and where there can be no rehearsal.
    """
    plan.show()
    if plan.args.deepspeed_plugin:
        raise UserError("--rehearse: DeepSpeed trains once in a process, a rehearsal twice; use fsdp2.yaml of recipes")
    folder = RunFolder(tempfile.mkdtemp())
    vars(plan.args).update(
        output_dir=str(folder),
        report_to=[],
        push_to_hub=False,
        save_strategy="no",
        eval_strategy="no",
        eval_on_start=False,
        logging_strategy="steps",
        logging_steps=1,
    )
    failed = False
    try:
        with folder.locked():
            _measure(plan)
    except RunError as error:
        failed = not out_of_memory(error)
        if failed:
            raise
        raise UserError(f"rehearsal: out of memory ({one_line(error, 120)}); {SMALLER}") from error
    finally:
        if not failed:  # else its error.log has the traceback
            shutil.rmtree(folder.path)


def _measure(plan: Plan) -> None:
    load_reward_models(plan.rewards)
    trainer = Trainer(
        model=plan.policy.load(),
        rewards=plan.rewards,
        args=plan.args,
        train_dataset=plan.data.train,
        processing_class=plan.policy.tokenizer,
        peft_config=plan.lora,
    )
    trainer.remove_callback(ProgressCallback)
    usual = _usual_steps(trainer, plan)
    worst = _worst_steps(trainer, plan)
    here = torch.tensor([max(worst.memory), mean(worst.seconds)], dtype=torch.float64, device=plan.args.device)
    peak, longest = trainer.accelerator.gather(here).view(-1, 2).amax(0).tolist()  # of all processes
    if not trainer.is_world_process_zero():
        return
    _print_signal(plan, usual)
    second_batch = usual.seconds[-max(1, round(plan.steps_per_call)) :]  # all is warm by then
    _print_costs(plan, peak, [mean(second_batch), longest], mean(worst.sampling))


class Clock(TrainerCallback):
    """Seconds of each step and of the sampling in it, memory after it, and its logs; a bar that says what is done."""

    def __init__(self, doing: str, steps: int):
        self.bar = tqdm(total=steps, desc=f"Rehearsal, {doing}", unit="step", leave=False)
        self.seconds = []
        self.sampling = []
        self.memory = []
        self.logs = []

    def timed(self, generate: Callable) -> Callable:
        """`generate`, whose seconds count as sampling."""

        def call(*args, **kwargs):
            begin = _now()
            result = generate(*args, **kwargs)
            self.sampled += _now() - begin
            return result

        return call

    def on_step_begin(self, args, state, control, **kwargs):
        self.begin = _now()
        self.sampled = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(_now() - self.begin)
        self.sampling.append(self.sampled)
        self.memory.append(_memory_in_use(args.use_vllm))
        self.bar.update()
        control.should_training_stop = state.global_step >= self.bar.total

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory_in_use(vllm: bool) -> int:
    """Bytes that this process has taken of its GPU at most; without a GPU, of the machine's memory."""
    if not torch.cuda.is_available():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    free, size = torch.cuda.mem_get_info()  # of vLLM's processes too, and of other programs
    return size - free if vllm else torch.cuda.max_memory_reserved() + int(CUDA_CONTEXT)


def _clocked(trainer: Trainer, plan: Plan, steps: int, doing: str) -> Clock:
    """Train so many steps, which the rewards may take for the first ones of the run."""
    trainer.args.max_steps = max(steps, plan.steps)
    clock = Clock(doing, steps)
    sampler = trainer.vllm_generation if trainer.use_vllm else trainer.model
    generate = sampler.generate
    sampler.generate = clock.timed(generate)
    trainer.add_callback(clock)
    with clock.bar:  # removed at its end, or an error's line would stand after it
        trainer.train()
    trainer.remove_callback(clock)
    sampler.generate = generate
    return clock


def _usual_steps(trainer: Trainer, plan: Plan) -> Clock:
    """Two generation batches at a learning rate of 0, of which TRL writes completions and rewards."""
    args = trainer.args
    rate = args.learning_rate
    args.learning_rate = 0.0
    steps = max(1, round(2 * plan.steps_per_call))
    trainer.log_completions = True
    trainer.num_completions_to_print = 0
    Path(args.output_dir, "completions").mkdir(exist_ok=True)
    clock = _clocked(trainer, plan, steps, "1 of 2: completions of the untrained model")
    args.learning_rate = rate
    trainer.log_completions = False
    return clock


def _worst_steps(trainer: Trainer, plan: Plan) -> Clock:
    args = trainer.args
    longest = np.argsort(plan.data.lengths)[-plan.prompts_a_batch :]
    rows = np.resize(longest, plan.prompts_a_batch * (WORST_BATCHES + 1))
    trainer.train_dataset = plan.data.train.select(rows)
    if trainer.use_vllm:
        trainer.vllm_generation.generation_kwargs["min_tokens"] = args.max_completion_length
    else:
        trainer.generation_config.min_new_tokens = args.max_completion_length
    steps = WORST_BATCHES * max(1, round(plan.steps_per_call))
    trainer.optimizer = None  # made anew, with the run's own learning rate
    trainer.lr_scheduler = None
    return _clocked(trainer, plan, steps, "2 of 2: the longest prompts and completions")


def _print_signal(plan: Plan, clock: Clock) -> None:
    """What the rewards can teach: their differences, how many completions are truncated, and three of these."""
    group = plan.args.num_generations
    every = max(1, round(plan.steps_per_call))  # each step writes the whole generation batch
    files = sorted(Path(plan.args.output_dir, "completions").iterdir())[::every]
    answers = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    print(f"\nWhat your rewards can teach: two batches of the untrained model, {group} completions per prompt")
    for reward in plan.rewards:
        scores = answers[reward.logged].astype(float)
        if scores.isna().all():
            print(f"  {reward.logged}: None for all completions")
            continue
        # Of a group to which the reward does not apply all is NaN, which pandas leaves out of its means.
        groups = pd.DataFrame(scores.to_numpy().reshape(-1, group)).T
        climb = groups.max() - groups.mean()
        spread = groups.max() - groups.min()
        alike = (spread.dropna() < FLAT).mean()
        line = f"{reward.logged}: {groups.mean().mean():.3g} (std {scores.std(ddof=0):.2g})"
        if scores.hasnans:
            line += f", None for {scores.isna().mean():.0%}"
        line += f", zero reward variance in {alike:.0%} of the groups"
        line += f"; the best of a group is {climb.mean():.2g} above its mean"
        print(f"  {line}: {_judgement(reward.weight, alike)}")
    cut = mean(log["completions/clipped_ratio"] for log in clock.logs if "completions/clipped_ratio" in log)
    judgement = "good"
    if cut > MUCH_CUT:
        judgement = "bad, as these are hardly judged fairly; raise it, or reward short completions"
    print(f"  {cut:.0%} truncated at max_completion_length {plan.args.max_completion_length}: {judgement}")
    weights = {reward.logged: reward.weight for reward in plan.rewards}
    answers["total reward"] = pd.Series([total(scores, weights) for scores in records(answers)], dtype=float)
    answers = answers.dropna(subset="total reward").sort_values("total reward", ascending=False)
    if answers.empty:  # no reward applies to any
        return
    for place, i in (("best", 0), ("median", len(answers) // 2), ("worst", -1)):
        answer = answers.iloc[i]
        text = answer["completion"][-1]["content"].replace("\n", "⏎")
        print(f"  {place} answer, {answer['total reward']:.2f}: {text}")
    best = [turns[-1]["content"] for turns in answers["completion"].head(8)]
    for note in cheats(plan, best):
        print(f"cheats: {note}")


def _judgement(weight: float, alike: float) -> str:
    """Whether there is a difference within the groups that GRPO can learn from."""
    remedy = "let it grade finer, ask what the model can sometimes do, or show it how in prompts.system"
    if not weight:
        return "a canary (weight 0), only watched"
    if alike <= 0.5:
        return "good, there is a difference to learn from"
    if alike <= 0.9:
        return f"weak, these groups teach nothing; {remedy}"
    return f"bad, it can teach next to nothing until completions differ; {remedy}"


def _print_costs(plan: Plan, peak: float, seconds: list[float], sampling: float) -> None:
    """Memory, time and money; `seconds` of a usual step and of the longest, which samples for `sampling`."""
    usual, longest = seconds
    print("Worst case: whole steps on the longest prompts, completions of full length")
    calculated = sum(plan.size.memory.values()) / GB
    line = f"  memory: {peak / GB:.1f} GB measured, of the whole process; {calculated:.1f} GB calculated"
    device = "CPU"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
        size = torch.cuda.get_device_properties(0).total_memory
        judgement = "good" if peak < 0.9 * size else f"tight; {SMALLER}"
        line += f"; {(size - peak) / GB:.1f} GB of the GPU's {size / GB:.0f} are left: {judgement}"
    print(line)
    share = sampling / longest
    print(f"  {longest:.2f} s per step, {share:.0%} of it sampling; with completions as they are now {usual:.2f} s")
    low, high = (timedelta(seconds=math.ceil(plan.steps * each)) for each in sorted(seconds))
    line = f"The run: {counted(plan.steps, 'step')} in {low} to {high} (h:mm:ss) on this {device}"
    price = plan.settings.options.price
    if price:
        hour = timedelta(hours=1)
        line += f", {low / hour * price:.2f} to {high / hour * price:.2f} dollars at {price:g} per hour"
    print(line)
