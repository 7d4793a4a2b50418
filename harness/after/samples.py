"""Samples: the same questions answered by the untrained and by the trained policy, and scored by every reward."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from harness.before.messages import as_messages
from harness.reward import Reward


def rows_to_ask(questions: list[str], system: str | None, held_out: Dataset) -> list[dict[str, Any]]:
    """`samples.questions`, and the rows of the data set that are never trained on."""
    asked = [as_messages(question, system) for question in questions]
    return [{"prompt": prompt, "held_out": False} for prompt in asked] + [{**row, "held_out": True} for row in held_out]


def answered(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the lines of samples.jsonl those on which a verdict rests: held out, and answered before and after."""
    return [sample for sample in samples if sample["held_out"] and sample["before"] and sample["after"]]


def ask(trainer: GRPOTrainer, rewards: list[Reward], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each row one `completion`, sampled as in training and with its seed, and its score by each of the `rewards`.

    The random state of training is put back afterwards, so that asking changes no loss. Every process has to call this.
    """
    if not rows:
        return []
    prompts, was_training = [row["prompt"] for row in rows], trainer.model.training
    with (
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as policy,
        trainer.accelerator.autocast(),
    ):
        texts, ids = complete(policy, trainer.processing_class, prompts, trainer.args, trainer.eos_token_ids)
    trainer.model.train(was_training)
    own = sum(not row["held_out"] for row in rows)  # these come first, and have none of the data's columns
    found = score(rewards, rows[:own], texts[:own], ids[:own], trainer.state)
    found += score(rewards, rows[own:], texts[own:], ids[own:], trainer.state)
    return [{"completion": text, "rewards": row} for text, row in zip(texts, found, strict=True)]


@torch.no_grad()
def complete(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[dict[str, str]]],
    arguments: GRPOConfig,
    eos_token_ids: list[int],
) -> tuple[list[str], list[list[int]]]:
    """One completion a prompt: texts, and tokens as TRL has them, up to the first that ends a text.

    Sampled as `arguments` say and with their seed; leaves the random state as it was.
    """
    more = arguments.chat_template_kwargs or {}
    tokens = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, **more)["input_ids"]
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")
    sampling = {name: getattr(arguments, name) for name in names}
    sampling |= {"do_sample": True, "max_new_tokens": arguments.max_completion_length, "disable_compile": True}
    sampling |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": eos_token_ids}
    if not arguments.use_vllm:  # whose arguments have other names
        sampling |= arguments.generation_kwargs or {}
    # About as many at a time as in training, where they have to fit as well.
    at_a_time = arguments.per_device_train_batch_size * (arguments.steps_per_generation or 1)
    texts: list[str] = []
    ids: list[list[int]] = []
    policy.eval()
    with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
        for part in np.array_split(np.arange(len(prompts)), max(1, round(len(prompts) / at_a_time))):
            torch.manual_seed(arguments.seed + int(part[0]))  # the same random numbers before and after training
            asked = {"input_ids": [tokens[i] for i in part]}
            batch = tokenizer.pad(asked, padding_side="left", return_tensors="pt").to(policy.device)
            output = policy.generate(**batch, **sampling)[:, batch["input_ids"].shape[1] :]
            texts += tokenizer.batch_decode(output, skip_special_tokens=True)
            for row in output.tolist():
                end = next((i for i, token in enumerate(row) if token in eos_token_ids), len(row))
                ids.append(row[: end + 1])
    return texts, ids


@torch.no_grad()
def score(
    rewards: list[Reward],
    rows: list[dict[str, Any]],
    completions: list[str],
    ids: list[list[int]],
    state: TrainerState,
) -> list[dict[str, float | None]]:
    """Of each completion by each reward, for rows with the same columns; None where the reward needs another one."""
    if not rows:
        return []
    prompts, found = [row["prompt"] for row in rows], {}
    answers = [[{"role": "assistant", "content": text}] for text in completions]
    others = {key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "held_out")}
    for reward in rewards:
        if reward.model is not None:
            chats = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
            texts = [reward.tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
            inputs = (reward.tokenizer(text, return_tensors="pt", add_special_tokens=False) for text in texts)
            device = next(reward.model.parameters()).device
            found[reward.logged] = [reward.model(**each.to(device)).logits[0, 0].item() for each in inputs]
        elif set(reward.columns) <= set(others):
            found[reward.logged] = reward.score(prompts, answers, others | {"completion_ids": ids}, state)
        else:
            found[reward.logged] = [None] * len(rows)
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
