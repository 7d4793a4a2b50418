"""Samples: the same questions answered by the untrained and by the trained policy, and scored by every reward."""

from typing import Any

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
        [row["prompt"] for row in rows],
        add_generation_prompt=True,
        return_dict=True,
        **(arguments.chat_template_kwargs or {}),
    )
    batch = tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(device)
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
        torch.manual_seed(arguments.seed)
        policy.eval()
        output = policy.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=True,
            max_new_tokens=arguments.max_completion_length,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=trainer.eos_token_ids,
            disable_compile=True,
            **sampling,
        )
    trainer.model.train(was_training)
    completions = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [
        {"completion": completion, "rewards": _scores(trainer, row, completion)}
        for row, completion in zip(rows, completions, strict=True)
    ]


def _scores(trainer: GRPOTrainer, row: dict[str, Any], completion: str) -> dict[str, float | None]:
    scores = {}
    messages = [{"role": "assistant", "content": completion}]
    for name, function, processing_class in zip(
        trainer.reward_func_names, trainer.reward_funcs, trainer.reward_processing_classes, strict=True
    ):
        if isinstance(function, torch.nn.Module):
            text = processing_class.apply_chat_template(row["prompt"] + messages, tokenize=False)
            inputs = processing_class(text, return_tensors="pt", add_special_tokens=False).to(
                trainer.accelerator.device
            )
            scores[name] = function(**inputs).logits[0, 0].item()
        elif set(columns(reward_functions()[name])) <= set(row):
            others = {key: [value] for key, value in row.items() if key not in ("prompt", "held_out")}
            scores[name] = score(function, [row["prompt"]], [messages], others, trainer.state)[0]
        else:
            scores[name] = None  # it needs a column that a question of our own does not have
    return scores
