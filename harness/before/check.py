"""Check: what can go wrong goes wrong here, in seconds and in one line; then the plan of the run is printed."""

import math
import os

import torch
from huggingface_hub import HfApi
from transformers import AutoConfig, GenerationConfig
from transformers.integrations import get_reporting_integration_callbacks
from trl import GRPOConfig

from harness.before.cheats import cheats
from harness.before.machine import check_weights
from harness.before.miniature import has_miniature, try_a_step
from harness.before.plan import Plan
from harness.before.policy import changes_base, loading_problem
from harness.before.resume import check_same_run
from harness.errors import RewardError, UserError, in_short, one_line
from harness.reward import GUARDED, Reward
from harness.run_folder import RunFolder


def check_run(plan: Plan) -> None:
    """Check what needs the arguments, the data and the model's shape; raises UserError."""
    check_services(plan)
    check_generation(plan)
    check_reference_model(plan)
    check_amount(plan)
    check_context(plan)
    check_evaluation(plan)
    check_weights(plan)
    in_miniature = has_miniature(plan.args)
    try:
        for reward in plan.rewards:
            if reward.may_cost or not in_miniature:
                check_reward(reward, plan)
        if in_miniature:
            try_a_step(plan)
        if plan.settings.options.check:  # not in a run, whose rewards may remember what they saw
            plan.cheats = cheats(plan)
    except RewardError as error:
        raise UserError(str(error)) from error


def check_services(plan: Plan) -> None:
    """Trackers and the Hub, where they are asked for; raises UserError."""
    os.environ.setdefault("WANDB_PROJECT", plan.args.project)
    try:
        for callback in get_reporting_integration_callbacks(plan.args.report_to):
            callback()
    except Exception as error:  # ValueError: unknown; RuntimeError: the tracker's package is not installed
        raise plan.settings.error("training.report_to", one_line(error)) from error
    if not plan.args.push_to_hub:
        return
    try:
        HfApi(token=plan.args.hub_token).whoami()
    except Exception as error:  # no network, no token, a wrong token
        raise plan.settings.error(
            "training.push_to_hub", f"the Hub does not let you in ({in_short(error)}); run `hf auth login`"
        ) from error


def check_generation(plan: Plan) -> None:
    """What upstream would ignore, what contradicts a setting, and what casts the weights; raises UserError."""
    settings = plan.settings
    training = settings.training
    continuous = "use_transformers_continuous_batching"
    in_bfloat16 = plan.policy.precision == torch.bfloat16
    if training.get(continuous) and in_bfloat16 and (plan.lora or plan.policy.dtype != torch.bfloat16):
        keys = (f"training.{continuous}", "training.bf16", "model.dtype", "lora")
        problem = "continuous batching with bf16 casts what is trained to bfloat16 for good: no LoRA, dtype: bfloat16"
        raise settings.error(keys, problem)
    for name, value in (training.get("generation_kwargs") or {}).items():
        key = f"training.generation_kwargs.{name}"
        if name == "do_sample" and not value:
            raise settings.error(key, "without sampling all completions of a prompt are the same: nothing is learned")
        if name in GRPOConfig.__dataclass_fields__:
            raise settings.error(key, f"is a setting of its own, training.{name}")
        if name in ("max_new_tokens", "max_length", "max_tokens"):
            raise settings.error(key, "is a setting of its own, training.max_completion_length")
        if not plan.args.use_vllm and name not in vars(GenerationConfig()):  # vLLM knows others
            raise settings.error(key, "unknown to transformers.GenerationConfig")


def check_reference_model(plan: Plan) -> None:
    """A base model as it was, where it is needed as that; raises UserError."""
    if plan.args.sync_ref_model and (plan.lora or not plan.args.beta):
        keys = ("training.sync_ref_model", "training.beta", "lora")
        raise plan.settings.error(keys, "there is no reference model to sync with LoRA, or with beta 0")
    if plan.lora and plan.args.beta and changes_base(plan.lora):
        keys = ("lora.init_lora_weights", "lora", "training.beta")
        raise plan.settings.error(keys, "this init_lora_weights changes the base model, which is the reference")


def check_amount(plan: Plan) -> None:
    """Enough prompts for a first step, or TRL would train nothing and save; raises UserError."""
    needed = plan.prompts_a_batch
    if len(plan.data.train) >= needed:
        return
    keys = (
        "prompts.limit",
        "samples.held_out",
        "training.per_device_train_batch_size",
        "training.gradient_accumulation_steps",
        "training.steps_per_generation",
        "training.generation_batch_size",
        "dataset.path",
        "dataset.data_files",
    )
    batch = f"one generation batch takes {needed} (generation_batch_size / num_generations)"
    raise plan.settings.error(keys, f"too little is left of the dataset: {plan.data.in_words()}; {batch}")


def check_context(plan: Plan) -> None:
    """Room for the longest prompt and a whole completion; raises UserError."""
    text = plan.policy.config.get_text_config()
    context = getattr(text, "max_position_embeddings", math.inf)  # ALiBi has no limit
    prompt = plan.data.longest
    completion = plan.args.max_completion_length
    if prompt + completion > context:
        keys = ("training.max_completion_length", "prompts.max_length", "model.pretrained_model_name_or_path")
        raise plan.settings.error(
            keys, f"{prompt} tokens of prompt and {completion} of completion exceed the model's context of {context}"
        )


def check_evaluation(plan: Plan) -> None:
    """Something to evaluate on, and a metric that there is; raises UserError."""
    settings = plan.settings
    args = plan.args
    if args.eval_strategy != "no" and not plan.data.held_out:
        keys = ("training.eval_strategy", "samples.held_out")
        raise settings.error(keys, "there is nothing to evaluate on: samples.held_out is 0, or the data are too few")
    if args.eval_on_start and args.eval_strategy == "no":
        keys = ("training.eval_on_start", "training.eval_strategy")
        raise settings.error(keys, "eval_on_start needs an eval_strategy")
    metric = args.metric_for_best_model
    if args.save_strategy == "best" and metric is None:
        raise settings.error(
            "training.save_strategy", "best by what? set training.metric_for_best_model, as recipes/best.yaml does"
        )
    metrics = ["reward", *(f"rewards/{reward.logged}/mean" for reward in plan.rewards), GUARDED]
    if metric and metric.removeprefix("eval_") not in metrics:
        keys = ["training.metric_for_best_model", *(f"rewards.{part}" for part in metric.split("/"))]
        problem = f"metric_for_best_model {metric} is no metric of this run's rewards: {', '.join(metrics)}"
        raise settings.error(keys, problem)


def check_reward(reward: Reward, plan: Plan) -> None:
    """Look a reward model up; call a function once, on two completions of a real row. Raises UserError, RewardError."""
    if reward.function is None:
        try:
            AutoConfig.from_pretrained(reward.name, trust_remote_code=False)
        except Exception as error:  # as in load_policy
            raise plan.settings.error(f"rewards.{reward.name}", loading_problem(reward.name, error)) from error
        return
    row = plan.data.train[0]
    texts = ["", "Yes: 42 ✨"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    others = {key: [value] * 2 for key, value in row.items() if key != "prompt"}
    others["completion_ids"] = plan.policy.tokenizer(texts, add_special_tokens=False)["input_ids"]
    reward.score([row["prompt"]] * 2, completions, others, plan.state())


def check_output(plan: Plan, folder: RunFolder, resume: bool | str) -> None:
    """A folder that is the run's to take, with room for what it leaves in it, or this very run; raises UserError."""
    key = "training.output_dir"
    error = plan.settings.error
    try:
        free = folder.room()
    except UserError as problem:
        raise error(key, str(problem)) from problem
    if resume:
        check_same_run(plan, folder)
    elif folder.why_taken():
        raise error(key, folder.why_taken())
    if free < plan.size.disk:
        raise error(
            key,
            f"{free / 1e6:,.0f} MB are free, {plan.size.disk / 1e6:,.0f} MB are needed "
            "for the model and its checkpoints (save_total_limit)",
        )
