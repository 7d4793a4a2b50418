"""The model card of a run: what was rewarded, before and after, warnings, figures. Its text is card.md."""

import html
import json
import re
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
    base = _public(settings.model["pretrained_model_name_or_path"])
    source = _public(settings.dataset.get("data_files") or settings.dataset["path"])
    metadata = ModelCardData(
        base_model=base if _on_hub(base) else None,
        datasets=[source] if _on_hub(source) else None,
        library_name="transformers",  # which opens an adapter too
        model_name=report.folder.path.name,
        pipeline_tag="text-generation",
        tags=["trl", "grpo"],
    )
    samples = report.shown()
    return ModelCard.from_template(
        metadata,
        template_path=Path(__file__).with_name("card.md"),
        report=report,
        plan=plan,
        args=args,
        state=state,
        verdict=report.verdict() if report.over else None,
        number=number,
        cell=_cell,
        answer_cell=_answer_cell,
        public=_public,
        base=_link(base, ""),
        data=_link(source, "datasets/"),
        samples=samples,
        question=json.dumps(samples[-1]["question"] if samples else "...", ensure_ascii=False),
        device=torch.cuda.get_device_name() if args.device.type == "cuda" else "CPU",
        best=best_in_words(args, state),
        versions=versions(),
        model_id=report.trainer.hub_model_id or ".",
    )


def _public(place: Any) -> str:
    """A model, a file or several; of an absolute path the last part alone, as a card may be published."""
    return re.sub("(^|')/([^']*/)?(?=[^'/])", r"\1", str(place))


def _on_hub(name: str) -> bool:
    return name.count("/") == 1 and not Path(name).exists()


def _link(name: str, kind: str) -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if _on_hub(name) else f"`{name}`"


def _answer_cell(answer: dict[str, Any]) -> str:
    return f"{_cell(answer['completion'])}<br>*{score_words(answer['rewards'])}*"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", "<br>")
