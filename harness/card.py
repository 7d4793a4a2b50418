"""The model card of a run: what was rewarded, before and after, warnings, figures. Its text is card.md."""

import html
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from trl import GRPOTrainer

from harness.rewarding import title
from harness.settings import Settings
from harness.watch import best_in_words


def model_card(
    trainer: GRPOTrainer,
    settings: Settings,
    samples: list[dict[str, Any]],
    rows: str,
    warnings: list[str],
    status: str,
    seconds: float,
) -> ModelCard:
    """The card as of now.

    Args:
        samples: those lines of samples.jsonl that are to be shown.
        rows: Data.in_words().
        status: a sentence in front of all else: the verdict, or that the run is unfinished or failed.
        seconds: how long the run has taken.
    """
    state, args = trainer.state, trainer.args
    name, base = Path(args.output_dir).name, settings.model["pretrained_model_name_or_path"]
    data = str(settings.dataset.get("data_files") or settings.dataset["path"])
    on_hub = [source for source in (base, data) if source.count("/") == 1 and not Path(source).exists()]
    gpu = torch.cuda.get_device_name() if trainer.accelerator.device.type == "cuda" else None
    device = gpu or platform.processor() or platform.machine()
    per_step = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    completions = state.global_step * per_step // args.num_iterations
    lengths = [log["completions/mean_length"] for log in state.log_history if "completions/mean_length" in log]
    rewards = {}
    for reward, entry in settings.rewards.items():
        words = ", ".join(f"{key} = {value}" for key, value in entry.items() if key != "weight")
        rewards[reward] = {"weight": entry["weight"], "settings": words and f" ({words})", "title": title(reward)}
    metadata = ModelCardData(
        base_model=base if base in on_hub else None,
        datasets=[data] if data in on_hub else None,
        library_name="peft" if settings.lora else "transformers",
        model_name=name,
        pipeline_tag="text-generation",
        tags=["trl", "grpo"],
    )
    return ModelCard.from_template(
        metadata,
        template_path=Path(__file__).with_name("card.md"),
        status=status,
        base=_link(base, "", on_hub),
        data=_link(data, "datasets/", on_hub),
        rewards=rewards,
        samples=[_table_row(sample) for sample in samples],
        warnings=warnings,
        args=args,
        state=state,
        rows=rows,
        completions=completions,
        tokens=completions * (sum(lengths) / len(lengths) if lengths else 0),
        time=f"{seconds / 60:.1f} minutes on {args.world_size} x {device}",
        weights=f"{settings.model.get('dtype') or 'auto'}, {'LoRA' if settings.lora else 'all trained'}",
        best=best_in_words(args, state),
        evaluations=[log for log in state.log_history if "eval_reward" in log],
        versions=", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "torch", "datasets")),
        model_id=args.hub_model_id or str(Path(args.output_dir).absolute()),
        question=json.dumps(samples[0]["question"] if samples else "...", ensure_ascii=False),
    )


def score_words(scores: dict[str, float | None]) -> str:
    """`emoji 4.00, length 0.74, answer –`"""
    words = {name.removesuffix("_reward"): "–" if score is None else f"{score:.2f}" for name, score in scores.items()}
    return ", ".join(f"{name} {score}" for name, score in words.items())


def _table_row(sample: dict[str, Any]) -> dict[str, str]:
    row = {"question": _cell(sample["question"]) + (" *(held out)*" if sample["held_out"] else "")}
    for side in ("before", "after"):
        answer = sample[side]
        row[side] = f"{_cell(answer['completion'])}<br>*{score_words(answer['rewards'])}*" if answer else "not yet"
    return row


def _link(name: str, kind: str, on_hub: list[str]) -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if name in on_hub else f"`{name}`"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", "<br>")
