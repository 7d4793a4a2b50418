"""Rehearse: measures in a minute what --check calculates: signal, memory, seconds. Nothing is kept without --keep.

Two generation batches of the untrained policy, sampled and scored as in the run, show what the rewards can teach. Then
whole steps as in the run, but on the longest prompts and with completions of full length, show its worst case.
"""

import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import ProgressCallback
from trl import GRPOConfig, GRPOTrainer

from harness.before.clock import Clock, host_memory
from harness.before.footprint import GB, moved_share, rounded_away, stochastic_rounding
from harness.before.forecast import forecast, in_words
from harness.before.plan import Plan
from harness.errors import SMALLER, RunError, UserError, out_of_memory
from harness.reward import FLAT
from harness.run_folder import RunFolder
from harness.settings import Settings, versions

WORST_STEPS = 3
MUCH_CUT = 0.05  # of the answers


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


def rehearse(trainer: GRPOTrainer, plan: Plan) -> None:
    """Train a few steps and print what the run would be like. Every process has to call this."""
    args, settings = trainer.args, plan.settings
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(clock := Clock())
    sampler = trainer.vllm_generation if trainer.use_vllm else trainer.model
    sampler.generate = clock.timed(sampler.generate)
    args.save_strategy, args.eval_strategy, args.logging_steps = "no", "no", 1
    with closing(clock):
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
    clock.doing = "Rehearsal, 1 of 2: answers of the untrained model"
    trainer.train()
    args.learning_rate, trainer.log_completions = rate, False
    if not trainer.is_world_process_zero():
        return {}
    files = sorted(folder.iterdir())[:: max(1, round(per_batch))]
    rows = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    rewards = {}
    for name, weight in zip(trainer.reward_func_names, args.reward_weights, strict=True):
        # Of a group to which the reward does not apply all is NaN, which pandas leaves out of its means.
        groups = pd.DataFrame(rows[name].to_numpy(dtype=float).reshape(-1, args.num_generations))
        best, mean, spread = groups.max(axis=1), groups.mean(axis=1), groups.max(axis=1) - groups.min(axis=1)
        flat, climb = (spread.dropna() < FLAT).mean(), (best - mean).mean()
        found = {"weight": weight, "mean": mean.mean(), "std": groups.stack().std(ddof=0), "flat": flat, "climb": climb}
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
    clock.doing = "Rehearsal, 2 of 2: the longest prompts and answers"
    trainer.train()
    worst = torch.tensor([[max(clock.memory), statistics.mean(clock.seconds[before:])]], dtype=torch.float64)
    worst = trainer.accelerator.gather(worst.to(args.device)).max(0).values.tolist()
    return {
        "typical_step_s": typical,
        "worst_step_s": worst[1],
        "worst_sampling_s": statistics.mean(clock.sampling[before:]),
        "peak_bytes": int(worst[0]),
        "growth_bytes": clock.memory[-1] - clock.memory[before],
        "host_bytes": host_memory(),
        "worst_length": max(log.get("completions/mean_length", 0) for log in clock.logs),
        "kl": max((log["kl"] for log in clock.logs if log.get("kl")), default=0.0),
    }


def _print(figures: dict[str, Any], args: GRPOConfig, price: float | None) -> None:
    signal, peak, (low, high) = figures["signal"], figures["peak_bytes"], figures["hours"]
    group, limit = args.num_generations, args.max_completion_length
    print(
        f"\nWhat your rewards can teach: two batches of the untrained model, {group} answers (a group) to each question"
    )
    for name, reward in signal["rewards"].items():
        line = f"{name}: {reward['mean']:.3g} (std {reward['std']:.2g}), all alike in {reward['flat']:.0%} of groups; "
        print(f"  {line}the best of a group is {reward['climb']:.2g} above its mean: {_signal(reward)}")
    cut = f"{signal['cut']:.0%} of answers are cut off at {limit} tokens, before their end"
    remedy = "bad, as these are hardly judged fairly; raise training.max_completion_length, or reward short answers"
    print(f"  {cut}: {'good' if signal['cut'] <= MUCH_CUT else remedy}")
    print(f"  {in_words(signal['forecast'])}")
    for place, (reward, completion) in signal["completions"].items():
        print(f"  {place} answer, {reward:.2f}: {completion}".replace("\n", "⏎"))
    print("Worst case: whole steps on the longest prompts, completions of full length")
    line = f"  memory: {peak / GB:.1f} GB measured, {figures['calculated_bytes'] / GB:.1f} GB calculated"
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        line += f"; {(total - peak) / GB:.1f} GB of the GPU's {total / GB:.0f} are left: "
        line += "good" if peak < 0.9 * total else f"tight; {SMALLER}"
        line += f"; {figures['host_bytes'] / GB:.1f} GB of the machine's memory"
    print(line)
    if (growth := figures["growth_bytes"]) > 0.1 * peak:
        grown = f"memory grew by {growth / GB:.2f} GB from the first to the last of these {WORST_STEPS} steps"
        print(f"  {grown}: usual so early; if it keeps growing in the run, a reward may keep what it is given")
    worst, typical, share = figures["worst_step_s"], figures["typical_step_s"], figures["worst_sampling_s"]
    print(f"  a step {worst:.2f} s, {share / worst:.0%} of it sampling; with answers as they are now {typical:.2f} s")
    cost = f", {low * price:.2f} to {high * price:.2f} at {price:g} an hour" if price else ""
    print(f"The run: {figures['steps']:,} steps in {_between(low, high)} on this {figures['device']}{cost}")
    if figures["moved_share"] < 0.5 and not stochastic_rounding(args):
        print(f"warning: {rounded_away(figures['moved_share'])}")
    if figures["kl"] > 1:
        far = f"KL {figures['kl']:.1f} a token in these few steps, above 1: the model leaves what it was too fast"
        print(f"warning: {far}; lower training.learning_rate")


def _signal(reward: dict[str, float]) -> str:
    """Whether GRPO can learn from these groups, and what to do where it cannot."""
    if not reward["weight"]:
        return "a canary (weight 0), only watched"
    if reward["flat"] <= 0.5:
        return "good, there is a difference to learn from"
    remedy = "let it grade finer, ask what the model can sometimes do, or show it how in prompts.system"
    if reward["flat"] <= 0.9:
        return f"weak, the groups that are alike teach nothing; {remedy}"
    return f"bad, it can teach next to nothing until answers differ; {remedy}"


def _between(low: float, high: float) -> str:
    """Hours: `2 to 8 minutes`, `25 minutes to 1.4 hours`."""
    words = [f"{60 * hours:.2g} minutes" if hours < 1 else f"{hours:,.1f} hours" for hours in (low, high)]
    unit = words[1].split()[1]
    return f"{words[0].removesuffix(f' {unit}')} to {words[1]}"
