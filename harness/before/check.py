"""Check: what can go wrong goes wrong here, in seconds and in one line; then the plan of the run is printed."""

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from jinja2 import TemplateError
from peft import LoraConfig
from transformers import AutoConfig, GenerationConfig, TrainerState
from transformers.integrations import get_reporting_integration_callbacks
from trl import GRPOConfig

from harness.before.data import prompt_text
from harness.before.machine import check_weights
from harness.before.messages import as_messages
from harness.before.miniature import try_a_step
from harness.before.plan import Plan
from harness.before.policy import Policy, loading_problem
from harness.before.resume import check_same_run
from harness.errors import RewardError, UserError, one_line
from harness.processes import first_decides
from harness.run_folder import RunFolder
from harness.settings import Settings


def training_arguments(settings: Settings) -> tuple[GRPOConfig, LoraConfig | None]:
    """GRPOConfig, and LoraConfig where there is LoRA; raises UserError with what they say against the settings."""
    elsewhere = ("revision", "subfolder", "token", "cache_dir")
    training: dict[str, Any] = {
        "run_name": Path(settings.training["output_dir"]).name,  # this and project are for trackers
        "project": "train-grpo",
        **settings.training,
        "trust_remote_code": settings.model.get("trust_remote_code", False),
        # For the reference model, which TRL loads by the policy's name.
        "model_init_kwargs": {key: settings.model[key] for key in elsewhere if key in settings.model} or None,
    }
    if settings.options.check and not torch.cuda.is_available():  # GRPOConfig would refuse what this machine cannot run
        training["use_cpu"] = True
        if not (training.get("bf16") and training.get("fp16")):  # which it refuses anywhere
            training |= {"bf16": False, "fp16": False}
    arguments = _built(settings, "training", GRPOConfig, training)
    return arguments, settings.lora and _built(settings, "lora", LoraConfig, settings.lora)


def check_run(plan: Plan, folder: RunFolder, resume: bool | str) -> Plan:
    """Check what needs the arguments, the data and the model's shape, then print the plan, which is returned.

    Raises UserError.
    """
    if resume:
        check_same_run(plan, folder)
    if plan.args.sync_ref_model and (plan.lora or not plan.args.beta):
        why = (
            "with LoRA the model itself, without its adapter, is the reference"
            if plan.lora
            else "with beta 0 there is none"
        )
        raise plan.settings.error(
            "training.sync_ref_model", f"there is no reference model to sync: {why}; set it to false"
        )
    check_services(plan.settings, plan.args)
    check_generation(plan.settings, plan.policy)
    check_lengths(plan)
    check_rewards(plan)
    check_weights(plan)
    plan.show()
    try_a_step(plan)
    if not plan.settings.options.rehearse:
        first_decides(lambda: check_output(plan, folder, resume))
    return plan


def check_services(settings: Settings, args: GRPOConfig) -> None:
    """Trackers and the Hub, where they are asked for; raises UserError."""
    os.environ.setdefault("WANDB_PROJECT", args.project)
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except Exception as error:  # ValueError: unknown; RuntimeError: the tracker's package is not installed
        raise settings.error("training.report_to", f"{one_line(error)}; install it, or set none") from error
    if args.push_to_hub:
        try:
            HfApi(token=args.hub_token).whoami()
        except Exception as error:  # no network, no token, a wrong token
            problem = f"the Hub does not let you in ({type(error).__name__}); run `hf auth login`, or set it to false"
            raise settings.error("training.push_to_hub", problem) from error


def check_generation(settings: Settings, policy: Policy) -> None:
    """What upstream would ignore, what contradicts a setting, and what casts the weights; raises UserError."""
    continuous, training = "use_transformers_continuous_batching", settings.training
    casts = training.get(continuous) and policy.precision == torch.bfloat16
    if casts and (settings.lora or policy.dtype != torch.bfloat16):
        problem = "with bf16 it casts the weights that are trained, or LoRA's, from float32 to bfloat16 for good"
        key = settings.latest(f"training.{continuous}", "training.bf16", "model.dtype", "lora")
        ours = "" if continuous in key else f"{continuous}: "
        raise settings.error(key, f"{ours}{problem}; use it with model.dtype: bfloat16 and without LoRA")
    if (training.get("generation_kwargs") or {}).get("do_sample") is False:
        problem = "without sampling all answers to a question are the same, and nothing is learned; remove it"
        raise settings.error("training.generation_kwargs.do_sample", problem)
    for key in settings.training.get("generation_kwargs") or {}:
        where = f"training.generation_kwargs.{key}"
        if key in GRPOConfig.__dataclass_fields__:
            raise settings.error(where, f"is a setting of its own; write training.{key} instead")
        if not settings.training.get("use_vllm") and key not in vars(GenerationConfig()):  # vLLM knows others
            raise settings.error(where, "unknown to transformers.GenerationConfig; fix or remove it")


def check_lengths(plan: Plan) -> None:
    """Enough prompts for a first step, something to ask and evaluate by, room in the context; raises UserError."""
    settings, args, data = plan.settings, plan.args, plan.data
    if len(data.train) < (needed := plan.prompts_a_batch):
        problem = f"one generation batch takes {needed} prompts (generation_batch_size / num_generations), so nothing "
        remedy = "use more data, smaller batches, or a smaller samples.held_out"
        sizes = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
        sizes = [f"training.{size}" for size in (*sizes, "generation_batch_size")]
        key = settings.latest("prompts.limit", "samples.held_out", *sizes, "dataset.path", "dataset.data_files")
        raise settings.error(
            key, f"too little is left of the dataset: {data.in_words()}; {problem}would be trained; {remedy}"
        )
    if args.eval_strategy != "no" and not data.held_out:
        key = settings.latest("training.eval_strategy", "samples.held_out")
        raise settings.error(key, "there is nothing to evaluate on; set samples.held_out, or eval_strategy: no")
    if args.eval_on_start and args.eval_strategy == "no":
        key = settings.latest("training.eval_on_start", "training.eval_strategy")
        needs = "needs training.eval_strategy" if key.endswith("start") else "is no, but training.eval_on_start is set"
        raise settings.error(key, f"{needs}; set both or neither")
    if not all(map(str.strip, settings.samples.questions)):
        raise settings.error("samples.questions", "one of them is empty; write a question, or remove it")
    for question in settings.samples.questions:  # the data's own system turns may hide what these lack
        try:
            asked = as_messages(question, settings.prompts.system)
            prompt_text(asked, plan.policy.tokenizer, args.chat_template_kwargs or {})
        except (TemplateError, ValueError) as error:
            name, system = settings.model["pretrained_model_name_or_path"], settings.prompts.system
            remedy = "remove prompts.system" if system else "set prompts.system, if it wants a system turn"
            problem = f"the template of {name} does not take {question[:40]!r} ({one_line(error)}); {remedy}, or "
            raise settings.error("samples.questions", f"{problem}ask no questions: []") from error
    if args.save_strategy == "best" and not args.metric_for_best_model:
        problem = "best by what? set training.metric_for_best_model, as recipes/best.yaml does"
        raise settings.error("training.save_strategy", problem)
    metrics = ["reward", *(f"rewards/{reward.logged}/mean" for reward in plan.rewards), "reward_while_canaries_hold"]
    if (metric := args.metric_for_best_model) and metric.removeprefix("eval_") not in metrics:
        key, reward = "training.metric_for_best_model", metric.removeprefix("eval_").split("/")[1:2]
        problem = f"{metric!r} is no metric of the rewards; choose one of {', '.join(metrics)}"
        blamed = settings.latest(key, *(f"rewards.{name}" for name in reward))
        raise settings.error(blamed, problem if blamed == key else f"{key}: {problem}")
    context = getattr(plan.policy.config.get_text_config(), "max_position_embeddings", math.inf)  # ALiBi has no limit
    if (prompt := int(data.lengths.max())) + args.max_completion_length > context:
        problem = f"{prompt} tokens of prompt and {args.max_completion_length} of completion exceed the model's "
        keys = ("training.max_completion_length", "prompts.max_length", "model.pretrained_model_name_or_path")
        remedy = "lower training.max_completion_length or prompts.max_length"
        raise settings.error(settings.latest(*keys), f"{problem}context of {context}; {remedy}")


def check_rewards(plan: Plan) -> None:
    """Call each reward function once, on two completions of a real row; raises UserError."""
    row = plan.data.train[0]
    others = {key: [value] * 2 for key, value in row.items() if key != "prompt"}
    texts = ["", "Yes: 42 ✨"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    others["completion_ids"] = plan.policy.tokenizer(texts, add_special_tokens=False)["input_ids"]
    for reward in plan.rewards:
        where = f"rewards.{reward.name}"
        if reward.function is None:
            try:
                AutoConfig.from_pretrained(reward.name, trust_remote_code=False)
            except Exception as error:  # as in load_policy
                raise plan.settings.error(where, loading_problem(reward.name, error)) from error
            continue
        if taken := sorted(set(reward.settings) & set(row)):
            problem = "the data have a column of this name, which TRL would pass instead; rename one of the two"
            raise plan.settings.error(f"{where}.{taken[0]}", f"{problem} (prompts.rename)")
        try:
            reward.score([row["prompt"]] * 2, completions, others, TrainerState())
        except RewardError as error:
            raise UserError(str(error)) from error


def check_output(plan: Plan, folder: RunFolder, resume: bool | str) -> None:
    """No run there yet, and room for the model, the checkpoints that save_total_limit keeps, and one being written."""
    path, key, error = folder.path.absolute(), "training.output_dir", plan.settings.error
    model = Path(plan.settings.model["pretrained_model_name_or_path"])
    if model.is_dir() and folder.path.is_dir() and model.samefile(folder.path):
        raise error(key, f"{folder} is the folder of the model itself, which would be overwritten; choose another")
    if (folder.checkpoints() or folder.state_file.exists()) and not resume:
        problem = f"{folder} already holds a run, which is never overwritten; go on with it by --resume, remove "
        raise error(key, f"{problem}the folder, or choose another with --training.output_dir")
    there = next(each for each in (path, *path.parents) if each.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise error(key, f"{folder} cannot be written (no folder to write to: {there}); choose another")
    if (free := shutil.disk_usage(there).free) < plan.disk:
        problem = f"{plan.disk / 1e6:,.0f} MB are needed for the model and its checkpoints"
        raise error(key, f"{problem}, {free / 1e6:,.0f} MB are free in {path}; free some, or lower save_total_limit")


def _built(settings: Settings, section: str, kind: type, values: dict[str, Any]) -> Any:
    """`kind` of the values of a section; raises UserError with the key that was set last of those that it is about."""
    try:
        return kind(**values)
    except Exception as error:  # ValueError, TypeError, ImportError: all about a value of the section
        given = [key for key in values if f"{section}.{key}" in settings.places]
        about = []
        for key in given:
            with suppress(Exception):
                about += [key] if kind(**{name: values[name] for name in values if name != key}) else []
        about += [key for key in given if key in str(error) or str(error).startswith(f"{values[key]} ")]
        if not about:
            raise UserError(f"{section}: {one_line(error)}; fix the value") from error
        raise settings.error(settings.latest(*(f"{section}.{key}" for key in about)), one_line(error)) from error
