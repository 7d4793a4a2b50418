"""The model card of a run: what was rewarded, before and after, warnings, figures. Its text is card.md."""

import html
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from harness.record import completions_a_step
from harness.rewarding import details, title
from harness.settings import versions
from harness.watch import best_in_words

if TYPE_CHECKING:
    from harness.report import Report


def model_card(report: "Report", status: str) -> ModelCard:
    """The card as of now; `status`: the verdict, or that the run is unfinished or failed, in front of all else."""
    trainer, settings, samples = report.trainer, report.settings, report.shown()
    state, args = trainer.state, trainer.args
    base = settings.model["pretrained_model_name_or_path"]
    data = str(settings.dataset.get("data_files") or settings.dataset["path"])
    on_hub = [source for source in (base, data) if source.count("/") == 1 and not Path(source).exists()]
    gpu = torch.cuda.get_device_name() if trainer.accelerator.device.type == "cuda" else None
    device = gpu or platform.processor() or platform.machine()
    completions = state.global_step * completions_a_step(args) // args.num_iterations
    lengths = [log["completions/mean_length"] for log in state.log_history if "completions/mean_length" in log]
    metadata = ModelCardData(
        base_model=base if base in on_hub else None,
        datasets=[data] if data in on_hub else None,
        library_name="peft" if settings.lora else "transformers",
        model_name=report.folder.name,
        pipeline_tag="text-generation",
        tags=["trl", "grpo"],
    )
    return ModelCard.from_template(
        metadata,
        template_path=Path(__file__).with_name("card.md"),
        status=status,
        base=_link(base, "", on_hub),
        data=_link(data, "datasets/", on_hub),
        report=report,
        title=title,
        details=details,
        samples=samples,
        cell=_cell,
        answered=_answered,
        args=args,
        state=state,
        completions=completions,
        tokens=completions * (sum(lengths) / len(lengths) if lengths else 0),
        time=f"{report.seconds / 60:.1f} minutes on {args.world_size} x {device}",
        best=best_in_words(args, state),
        evaluations=[log for log in state.log_history if "eval_reward" in log],
        versions=", ".join(map(" ".join, versions().items())),
        model_id=args.hub_model_id or report.folder.absolute(),
        question=json.dumps(samples[0]["question"] if samples else "...", ensure_ascii=False),
    )


def score_words(scores: dict[str, float | None], between: str = ", ") -> str:
    """`emoji 4.00, length 0.74, answer –`"""
    words = {name.removesuffix("_reward"): "–" if score is None else f"{score:.2f}" for name, score in scores.items()}
    return between.join(f"{name} {score}" for name, score in words.items())


def _answered(answer: dict[str, Any] | None) -> str:
    return f"{_cell(answer['completion'])}<br>*{score_words(answer['rewards'])}*" if answer else "not yet"


def _link(name: str, kind: str, on_hub: list[str]) -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if name in on_hub else f"`{name}`"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", "<br>")
