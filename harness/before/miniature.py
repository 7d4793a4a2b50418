"""Miniature: one step of this very training, by a model of a few million weights, before the real one is loaded.

What upstream refuses only when it builds the optimizer, samples for the first time or takes a step is refused here: an
optimizer without its package, wrong arguments of a scheduler, what generate() does not take; on a GPU, no compiler.
"""

import contextlib
import copy
import io
import logging
import re
import tempfile
import traceback

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOTrainer

from harness.before.footprint import sharding
from harness.before.plan import Plan
from harness.errors import UserError, one_line, out_of_memory

SETTINGS_OF = {  # of a part of upstream
    "create_optimizer": ("optim", "optim_args", "adam_beta2", "adam_beta1", "adam_epsilon"),
    "create_scheduler": ("lr_scheduler_kwargs", "lr_scheduler_type"),
    "_generate_and_score_completions": ("generation_kwargs", "cache_implementation"),
}


def try_a_step(plan: Plan) -> None:
    """Raises UserError with the setting that upstream does not take. Several processes, and vLLM, are left out."""
    if plan.args.world_size > 1 or any(sharding(plan.args)):
        return
    said = io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            _train_once(plan, folder)
    except Exception as error:  # all that upstream raises, about a setting of any name
        if not out_of_memory(error):  # of which the run itself has more to say
            raise _blamed(plan, error) from error
    finally:
        logging.disable(logging.NOTSET)


def _train_once(plan: Plan, folder: str) -> None:
    args = copy.copy(plan.args)
    args.output_dir, args.report_to, args.push_to_hub, args.disable_tqdm = folder, [], False, True
    args.save_strategy = args.logging_strategy = args.eval_strategy = "no"
    args.load_best_model_at_end = args.eval_on_start = args.torch_compile = args.sync_ref_model = False
    args.beta = 0.0  # the reference model is loaded by its name
    args.max_completion_length, args.max_steps, args.reward_weights = 2, 1, [1.0]
    args.gradient_accumulation_steps = args.steps_per_generation = args.num_iterations = 1
    args.per_device_train_batch_size = args.generation_batch_size = args.num_generations
    if args.use_vllm:
        args.use_vllm, args.generation_kwargs = False, None
    text = plan.policy.config.get_text_config()
    config = Qwen2Config(
        vocab_size=text.vocab_size, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=10**6,
        attn_implementation=plan.policy.keywords.get("attn_implementation"),
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).to(torch.float32 if plan.lora else plan.policy.dtype)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[_any_reward],
        args=args,
        train_dataset=plan.data.train.select([0]).select_columns("prompt"),
        processing_class=plan.policy.tokenizer,
    )
    if not args.optim_target_modules:  # they are names of the real model
        trainer.create_optimizer()
        trainer.create_scheduler(plan.steps)
    # A step of the optimizer itself may have to be compiled for half a minute.
    trainer.optimizer, trainer.lr_scheduler = torch.optim.SGD(model.parameters(), lr=0.0), None
    args.optim, args.lr_scheduler_type, args.lr_scheduler_kwargs = "sgd", "constant", {}
    trainer.train()


def _any_reward(completions, **_) -> list[float]:
    return [float(i % 2) for i in range(len(completions))]


def _blamed(plan: Plan, error: Exception) -> UserError:
    """The UserError with the setting that the message names, or that the part of upstream which has failed is for."""
    message, training = one_line(error).rstrip("."), plan.settings.training
    inner = {name: f"{key}.{name}" for key, value in training.items() if isinstance(value, dict) for name in value}
    outer = {name: name for name in training if "_" in name}  # not beta or optim, which are words too
    named, at_large = (
        [key for name, key in names.items() if re.search(rf"\b{name}\b", message)] for names in (inner, outer)
    )
    failed = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    of_part = [key for part, keys in SETTINGS_OF.items() if part in failed for key in keys if key in training]
    key = next(iter([*named, *of_part, *at_large]), None)
    return plan.settings.error(f"training.{key}" if key else "training", f"{message}; fix it, or remove it")
