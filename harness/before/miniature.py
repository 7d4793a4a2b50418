"""Miniature: one step of this very training, by a model of a few million parameters, before the real one is loaded.

What upstream refuses only when it puts LoRA in, builds the optimizer, samples for the first time or takes a step is
refused here, and so is what a reward does wrong, which TRL calls as in the run; on a GPU, a compiler that is missing.
"""

import copy
import io
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerState
from trl import GRPOConfig, GRPOTrainer

from harness.before.arguments import key_about, training_arguments
from harness.before.footprint import sharding
from harness.before.plan import Plan
from harness.before.policy import CheckpointingAsItWas
from harness.errors import RewardError, one_line, out_of_memory
from harness.processes import quiet
from harness.reward import Reward

WIDTH = 32  # of its layer


def has_miniature(args: GRPOConfig) -> bool:
    """Whether try_a_step can try such a run: not one in several processes, or of a model that is divided over them."""
    return args.world_size == 1 and not any(sharding(args))


def try_a_step(plan: Plan) -> None:
    """Train one step, in which each reward that costs nothing is called once, on two completions. vLLM is left out.

    Raises RewardError, and UserError, which names the setting that upstream does not take.
    """
    rewards = [reward for reward in plan.rewards if not reward.may_cost]
    try:
        _train_once(plan, plan.args, plan.lora, rewards)
    except RewardError:
        raise
    except Exception as error:  # all that upstream raises, about a setting of any name
        if out_of_memory(error):
            print("note: too little memory for the step in miniature, which was left out")
            return
        key = key_about(plan.settings, lambda settings: _train_once(plan, *training_arguments(settings), []))
        raise plan.settings.error(key, one_line(error)) from error


def _train_once(plan: Plan, args: GRPOConfig, lora: LoraConfig | None, rewards: list[Reward]) -> None:
    with without_a_trace() as folder:
        model = _small_model(plan)
        model.generation_config = copy.deepcopy(plan.policy.generation)  # upstream writes into it
        args = _small(args, folder)
        args.reward_weights = [*(reward.weight for reward in rewards), 1.0]
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[*(_as_in_the_run(reward, plan.state()) for reward in rewards), _any_reward],
            args=args,
            train_dataset=plan.data.train.select([0]),
            processing_class=plan.policy.tokenizer,
            peft_config=_small_lora(model, lora) if lora else None,
            callbacks=[CheckpointingAsItWas()],
        )
        if not args.optim_target_modules:  # they are names of the real model
            trainer.create_optimizer()
            trainer.create_scheduler(plan.steps)
        # A step of the optimizer itself may have to be compiled for half a minute.
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
        trainer.lr_scheduler = None
        vars(args).update(optim="sgd", lr_scheduler_type="constant", lr_scheduler_kwargs={})
        trainer.train()


@contextmanager
def without_a_trace(devices=None) -> Iterator[str]:
    """A folder to write to; all that is written, printed and drawn at random inside is gone afterwards.

    `devices`: the numbers of the GPUs whose random state is put back; None: all, on each of which CUDA is started.
    """
    python = random.getstate()
    numpy = np.random.get_state()
    said = io.StringIO()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            quiet(),
            redirect_stdout(said),
            redirect_stderr(said),
            torch.random.fork_rng(devices),
        ):
            yield folder
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _small(args: GRPOConfig, folder: str) -> GRPOConfig:
    """The run's own, but for one step of two completions, of which nothing is kept."""
    args = copy.copy(args)
    vars(args).update(
        output_dir=folder,
        max_steps=1,
        num_generations=2,
        generation_batch_size=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_iterations=1,
        max_completion_length=2,
        beta=0.0,  # the reference model is loaded by its name
        sync_ref_model=False,
        torch_compile=False,
        report_to=[],
        logging_strategy="no",
        eval_strategy="no",
        eval_on_start=False,
        save_strategy="no",
        push_to_hub=False,
    )
    if args.use_vllm:
        args.use_vllm = False
        args.generation_kwargs = None
    options = args.activation_checkpointing_kwargs
    if options and not torch.cuda.is_available():  # activations cannot be moved off a GPU where there is none
        args.gradient_checkpointing_kwargs = args.activation_checkpointing_kwargs = options | {"offload": False}
    return args


def _small_model(plan: Plan) -> Qwen2ForCausalLM:
    text = plan.policy.config.get_text_config()
    config = Qwen2Config(
        vocab_size=text.vocab_size,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=10**6,
        tie_word_embeddings=getattr(text, "tie_word_embeddings", False),
        attn_implementation=plan.policy.keywords.get("attn_implementation"),
    )
    return Qwen2ForCausalLM(config).to(plan.policy.dtype)


def _small_lora(model: Qwen2ForCausalLM, lora: LoraConfig) -> LoraConfig:
    """The user's; with `all-linear` for modules that this model does not have, which the plan has found in the real."""
    lora = copy.deepcopy(lora)
    lora.r = min(lora.r, WIDTH)
    lora.layers_to_transform = lora.layers_pattern = lora.layer_replication = None  # by numbers of the real layers
    try:
        get_peft_model(copy.deepcopy(model), copy.deepcopy(lora))
    except ValueError:  # modules not found; any other one is raised again by the training
        lora.target_modules = "all-linear"
        lora.exclude_modules = lora.modules_to_save = lora.target_parameters = None
    return lora


def _as_in_the_run(reward: Reward, state: TrainerState) -> Callable:
    """The reward as TRL calls it; the first completion is empty, as a policy's may be, and the steps are the run's."""
    function = reward.for_trl()

    def call(completions, **others):
        completions[0][-1]["content"] = ""
        return function(completions=completions, **others | {"trainer_state": state})

    call.__name__ = reward.name
    return call


def _any_reward(completions, **_) -> list[float]:
    """Something to learn from, whatever the others say."""
    return [float(i) for i in range(len(completions))]
