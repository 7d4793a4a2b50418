"""Samples: the same questions answered by the untrained and by the trained policy, and scored by every reward."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from harness.rewarding import columns, reward_functions, score
from harness.settings import Settings


def sample_questions(settings: Settings, held_out: Dataset) -> list[dict[str, Any]]:
    """The rows to ask: `samples.questions`, and the rows of the data set that are never trained on."""
    system = [{"role": "system", "content": settings.prompts.system}] if settings.prompts.system else []
    asked = [
        {"prompt": [*system, {"role": "user", "content": question}], "held_out": False}
        for question in settings.samples.questions
    ]
    return asked + [{**row, "held_out": True} for row in held_out]


@torch.no_grad()
def answer(trainer: GRPOTrainer, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One completion a row, sampled as in training and with its seed, and its score by each reward (None: cannot tell).

    The random state of training is put back afterwards, so that asking changes no loss. Every process has to call this.
    """
    arguments, tokenizer, device = trainer.args, trainer.processing_class, trainer.accelerator.device
    if not rows:
        return []
    prompts = tokenizer.apply_chat_template(
        [row["prompt"] for row in rows], add_generation_prompt=True, **(arguments.chat_template_kwargs or {})
    )["input_ids"]
    # About as many at a time as in training, where they have to fit as well.
    parts = max(1, round(len(rows) / (arguments.per_device_train_batch_size * arguments.steps_per_generation)))
    completions: list[str] = []
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")
    sampling = {name: getattr(arguments, name) for name in names}
    if not arguments.use_vllm:  # whose arguments have other names
        sampling |= arguments.generation_kwargs or {}
    was_training = trainer.model.training
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as policy,
        trainer.accelerator.autocast(),
    ):
        policy.eval()
        for part in np.array_split(np.arange(len(rows)), parts):
            torch.manual_seed(arguments.seed + int(part[0]))  # the same before and after, however long the others are
            asked = {"input_ids": [prompts[i] for i in part]}
            batch = tokenizer.pad(asked, padding_side="left", return_tensors="pt").to(device)
            output = policy.generate(
                **batch,
                do_sample=True,
                max_new_tokens=arguments.max_completion_length,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=trainer.eos_token_ids,
                disable_compile=True,
                **sampling,
            )
            completions += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    trainer.model.train(was_training)
    own = sum(not row["held_out"] for row in rows)  # these come first, and have none of the data's columns
    scores = _scores(trainer, rows[:own], completions[:own]) + _scores(trainer, rows[own:], completions[own:])
    return [{"completion": text, "rewards": row} for text, row in zip(completions, scores, strict=True)]


def _scores(trainer: GRPOTrainer, rows: list[dict[str, Any]], completions: list[str]) -> list[dict[str, float | None]]:
    """By each reward, of rows with the same columns."""
    prompts, scores = [row["prompt"] for row in rows], {}
    answers = [[{"role": "assistant", "content": text}] for text in completions]
    others = {key: [row[key] for row in rows] for row in rows[:1] for key in row if key not in ("prompt", "held_out")}
    for name, function, tokenizer in zip(
        trainer.reward_func_names, trainer.reward_funcs, trainer.reward_processing_classes, strict=True
    ):
        if isinstance(function, torch.nn.Module):
            chats = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
            texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
            inputs = (tokenizer(text, return_tensors="pt", add_special_tokens=False) for text in texts)
            scores[name] = [function(**i.to(trainer.accelerator.device)).logits[0, 0].item() for i in inputs]
        elif rows and set(columns(reward_functions()[name])) <= set(others):
            scores[name] = score(function, prompts, answers, others, trainer.state)
        else:
            scores[name] = [None] * len(rows)  # it needs a column that a question of our own does not have
    return [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]
