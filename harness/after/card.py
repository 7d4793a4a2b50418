"""The model card of a run: what was rewarded, before and after, warnings, figures. Its text is card.md."""

import html
import json
import platform
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from harness.after.verdict import number
from harness.during.watch import best_in_words
from harness.reward import score_words
from harness.settings import versions


def model_card(report) -> ModelCard:
    """The card of a Report as of now; the verdict, or that there is none yet, stands in front."""
    plan = report.plan
    args = report.trainer.args
    state = report.trainer.state
    settings = plan.settings
    base = settings.model["pretrained_model_name_or_path"]
    source = str(settings.dataset.get("data_files") or settings.dataset["path"])
    metadata = ModelCardData(
        base_model=base if _on_hub(base) else None,
        datasets=[source] if _on_hub(source) else None,
        library_name="peft" if settings.lora else "transformers",
        model_name=report.folder.path.name,
        pipeline_tag="text-generation",
        tags=["trl", "grpo"],
    )
    samples = report.shown()

    def logged(key: str) -> list[float]:
        return [log[key] for log in state.log_history if log.get(key) is not None]

    completions = state.global_step * plan.completions_a_step // args.num_iterations
    lengths = logged("completions/mean_length")
    tokens = completions * sum(lengths) / len(lengths) if lengths else 0
    return ModelCard.from_template(
        metadata,
        template_path=Path(__file__).with_name("card.md"),
        report=report,
        plan=plan,
        args=args,
        state=state,
        verdict=report.verdict() if report.over else None,
        logged=logged,
        number=number,
        cell=_cell,
        answer_cell=_answer_cell,
        base=_link(base, ""),
        data=_link(source, "datasets/"),
        samples=samples,
        question=json.dumps(samples[0]["question"] if samples else "...", ensure_ascii=False),
        completions=completions,
        tokens=tokens,
        device=_device(report.trainer.accelerator.device),
        best=best_in_words(args, state),
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
        model_id=args.hub_model_id or report.folder.path.absolute(),
    )


def _on_hub(name: str) -> bool:
    return name.count("/") == 1 and not Path(name).exists()


def _link(name: str, kind: str) -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if _on_hub(name) else f"`{name}`"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def _answer_cell(answer: dict[str, Any] | None) -> str:
    if answer is None:
        return "not yet"
    return f"{_cell(answer['completion'])}<br>*{score_words(answer['rewards'])}*"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", "<br>")
