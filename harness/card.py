"""The model card of a run: what was rewarded, before and after, warnings, figures, licences."""

import html
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from trl import GRPOTrainer

from harness.curves import reward_title
from harness.settings import Settings

CARD = """\
# {title}

{status}{base} trained with GRPO on questions of {data}, to maximise

{reward_list}

![The rewards, completion length and KL over the optimizer steps](reward_curves.png)

## Before and after

The same questions, sampled with the same settings and seed. Held-out questions were not used by GRPO; a reward of –
needs a column that the question does not have.

{samples}

## Warnings of the run

{warnings}

## The run

| | |
|---|---|
{facts}

Every setting: [config.yaml](config.yaml); `python train_grpo.py --config` with this file repeats the run.

## Use

```python
from transformers import pipeline

chat = pipeline("text-generation", model="{model_id}")
messages = [{{"role": "user", "content": {question!r}}}]
reply = chat(messages, do_sample=True, temperature={temperature}, max_new_tokens={max_tokens})[0]["generated_text"][-1]
print(reply["content"])
```

## Licences

{licences}

## Citation

```bibtex
{citation}
```
"""
LICENCES = {
    "SakanaAI/TinySwallow-1.5B-Instruct": "Apache-2.0, with the Gemma terms of use on top (its training data)",
    "cl-nagoya/auto-wiki-qa": "cc-by-sa-4.0",
}


def model_card(
    trainer: GRPOTrainer,
    settings: Settings,
    samples: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]],
    warnings: list[str],
    status: str,
    seconds: float,
) -> ModelCard:
    """The card as of now.

    Args:
        samples: (row, answer before, answer after or None) of each question.
        status: a sentence in front of all else where the run is unfinished or failed, else empty.
    """
    state, args = trainer.state, trainer.args
    folder, base = Path(args.output_dir), settings.model["pretrained_model_name_or_path"]
    data = str(settings.dataset.get("data_files") or settings.dataset["path"])
    on_hub = [source for source in (base, data) if source.count("/") == 1 and not Path(source).exists()]
    gpu = torch.cuda.get_device_name() if trainer.accelerator.device.type == "cuda" else None
    device = gpu or platform.processor() or platform.machine()
    per_step = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    completions = state.global_step * per_step // args.num_iterations
    lengths = [log["completions/mean_length"] for log in state.log_history if "completions/mean_length" in log]
    generated = completions * (sum(lengths) / len(lengths) if lengths else 0)
    facts = {
        "steps": f"{state.global_step:,} of {state.max_steps:,}, {completions:,} completions",
        "time": f"{seconds / 60:.1f} minutes on {args.world_size} x {device}",
        "generated": f"about {generated:,.0f} tokens",
        "learning rate, beta": f"{args.learning_rate:g}, {args.beta:g}",
        "completions": f"{args.num_generations} a prompt, temperature {args.temperature:g}",
        "longest completion": f"{args.max_completion_length} tokens",
        "weights": f"{settings.model.get('dtype') or 'auto'}, {'LoRA' if settings.lora else 'all trained'}",
        "versions": ", ".join(
            f"{package} {version(package)}" for package in ("trl", "transformers", "torch", "datasets")
        ),
    }
    metadata = ModelCardData(
        base_model=base if base in on_hub else None,
        datasets=[data] if data in on_hub else None,
        library_name="peft" if settings.lora else "transformers",
        model_name=folder.name,
        pipeline_tag="text-generation",
        tags=["trl", "grpo"],
    )
    text = CARD.format(
        title=folder.name,
        status=status,
        base=_link(base, "", on_hub),
        data=_link(data, "datasets/", on_hub),
        reward_list="\n".join(
            f"- {entry['weight']:g} x `{reward}`{_arguments(entry)}: {reward_title(reward)}"
            + ("" if entry["weight"] else " *(watched, not trained on)*")
            for reward, entry in settings.rewards.items()
        ),
        samples=_sample_table(samples),
        warnings="\n".join(f"- {warning}" for warning in warnings) or "None.",
        facts="\n".join(f"| {fact} | {value} |" for fact, value in facts.items()),
        model_id=args.hub_model_id or folder,
        question=samples[0][0]["prompt"][-1]["content"] if samples else "富士山の高さは?",
        temperature=args.temperature,
        max_tokens=args.max_completion_length,
        licences="\n".join(
            f"- {source}: {LICENCES.get(source, 'as its page or its author says; this model inherits it')}"
            for source in (base, data)
        ),
        citation=trainer._paper["citation"].strip(),
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}")


def score_words(scores: dict[str, float | None]) -> str:
    """`emoji 4.00, length 0.74, answer –`"""
    return ", ".join(
        f"{name.removesuffix('_reward')} {'–' if score is None else f'{score:.2f}'}" for name, score in scores.items()
    )


def _sample_table(samples: list[tuple[dict, dict, dict | None]]) -> str:
    lines = ["| question | before | after |", "|---|---|---|"]
    for row, *sides in samples:
        cells = [
            f"{_cell(side['completion'])}<br>*{score_words(side['rewards'])}*" if side else "not yet" for side in sides
        ]
        question = _cell(row["prompt"][-1]["content"]) + (" *(held out)*" if row["held_out"] else "")
        lines.append(f"| {question} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _arguments(entry: dict[str, Any]) -> str:
    words = [f"{key} = {value}" for key, value in entry.items() if key != "weight"]
    return f" ({', '.join(words)})" if words else ""


def _link(name: str, kind: str, on_hub: list[str]) -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if name in on_hub else f"`{name}`"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", "<br>")
