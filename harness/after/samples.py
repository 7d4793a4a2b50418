"""Samples: the same questions answered by the untrained and by the trained policy, and scored by every reward."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from harness.before.data import prompt_text
from harness.before.messages import as_messages
from harness.reward import Reward


def rows_to_ask(questions: list[str], system: str | None, held_out: Dataset) -> list[dict[str, Any]]:
    """`samples.questions`, and the rows of the data set that are never trained on."""
    rows = [{"prompt": as_messages(question, system), "held_out": False} for question in questions]
    for row in held_out:
        rows.append({**row, "held_out": True})
    return rows


def ask(trainer: GRPOTrainer, rewards: list[Reward], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each row one `completion`, sampled as in training and with its seed, and its score by each of the `rewards`.

    The random state of training is put back afterwards, so that asking changes no loss. Every process has to call this.
    """
    if not rows:
        return []
    prompts = [row["prompt"] for row in rows]
    was_training = trainer.model.training
    with (
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as policy,
        trainer.accelerator.autocast(),
    ):
        texts, ids = complete(policy, trainer.processing_class, prompts, trainer.args, trainer.eos_token_ids)
    trainer.model.train(was_training)
    # Questions of the settings come first; as they have none of the data's columns, they are scored by themselves.
    first = sum(not row["held_out"] for row in rows)
    scores = score(rewards, rows[:first], texts[:first], ids[:first], trainer.state)
    scores += score(rewards, rows[first:], texts[first:], ids[first:], trainer.state)
    return [{"completion": text, "rewards": each} for text, each in zip(texts, scores, strict=True)]


@torch.no_grad()
def complete(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[dict[str, str]]],
    arguments: GRPOConfig,
    eos_token_ids: list[int],
) -> tuple[list[str], list[list[int]]]:
    """One completion per prompt: texts, and tokens as TRL has them, up to the first that ends a text.

    Sampled as `arguments` say and with their seed; leaves the random state as it was.
    """
    template = arguments.chat_template_kwargs or {}
    asked = [prompt_text(prompt, tokenizer, template) for prompt in prompts]
    sampling = _sampling(arguments, tokenizer.pad_token_id, eos_token_ids)
    # About as many at a time as in training, where they have to fit as well.
    at_a_time = arguments.per_device_train_batch_size * (arguments.steps_per_generation or 1)
    calls = max(1, round(len(prompts) / at_a_time))
    texts: list[str] = []
    ids: list[list[int]] = []
    policy.eval()
    with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
        for rows in np.array_split(np.arange(len(prompts)), calls):
            torch.manual_seed(arguments.seed + int(rows[0]))  # the same random numbers before and after training
            batch = tokenizer(
                [asked[row] for row in rows],
                add_special_tokens=False,  # the template has written them
                padding=True,
                padding_side="left",
                return_token_type_ids=False,
                return_tensors="pt",
            ).to(policy.device)
            output = policy.generate(**batch, **sampling)
            completions = output[:, batch["input_ids"].shape[1] :]
            texts += tokenizer.batch_decode(completions, skip_special_tokens=True)
            ids += [_up_to_its_end(tokens, eos_token_ids) for tokens in completions.tolist()]
    return texts, ids


def _sampling(arguments: GRPOConfig, pad_token_id: int, eos_token_ids: list[int]) -> dict[str, Any]:
    """What `generate` is given, as TRL gives it."""
    sampling = {
        "do_sample": True,
        "max_new_tokens": arguments.max_completion_length,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "cache_implementation": arguments.cache_implementation,
        "pad_token_id": pad_token_id,
        "eos_token_id": eos_token_ids,
        "disable_compile": True,
    }
    if not arguments.use_vllm:  # whose arguments have other names
        sampling |= arguments.generation_kwargs or {}
    return sampling


def _up_to_its_end(tokens: list[int], eos_token_ids: list[int]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in eos_token_ids:
            return tokens[: i + 1]
    return tokens


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
    prompts = [row["prompt"] for row in rows]
    answers = [[{"role": "assistant", "content": text}] for text in completions]
    columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "held_out")}
    found: list[dict[str, float | None]] = [{} for _ in rows]
    for reward in rewards:
        if reward.model is not None:
            chats = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
            values = [_score_of_model(reward, chat) for chat in chats]
        elif set(reward.columns) <= set(columns):
            values = reward.score(prompts, answers, columns | {"completion_ids": ids}, _as_training_saw(state))
        else:
            values = [None] * len(rows)
        for scores, value in zip(found, values, strict=True):
            scores[reward.logged] = value
    return found


def _as_training_saw(state: TrainerState) -> TrainerState:
    """Up to its last log of a training step, as an evaluation's and that of the end hold no `reward`."""
    logs = state.log_history.copy()
    while logs and "reward" not in logs[-1]:
        logs.pop()
    return replace(state, log_history=logs)


def _score_of_model(reward: Reward, chat: list[dict[str, str]]) -> float:
    text = reward.tokenizer.apply_chat_template(chat, tokenize=False)
    inputs = reward.tokenizer(text, return_tensors="pt", add_special_tokens=False).to(reward.model.device)
    return reward.model(**inputs).logits[0, 0].item()
