"""The model card of a run: what was rewarded, before and after, warnings, figures. Its text is card.md."""

import html
import json
import platform
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from trl import GRPOTrainer

from harness.after.verdict import Verdict, number
from harness.before.plan import Plan
from harness.during.watch import best_in_words
from harness.reward import score_words
from harness.run_folder import RunFolder
from harness.settings import versions


def model_card(
    trainer: GRPOTrainer,
    plan: Plan,
    folder: RunFolder,
    samples: list[dict[str, Any]],
    warnings: list[str],
    seconds: float,
    status: str,
    verdict: Verdict | None,
) -> ModelCard:
    """The card as of now, with these of the samples; `status`, the verdict or that there is none, stands in front."""
    state, args, settings = trainer.state, trainer.args, plan.settings
    base = settings.model["pretrained_model_name_or_path"]
    source = str(settings.dataset.get("data_files") or settings.dataset["path"])
    on_hub = [name for name in (base, source) if name.count("/") == 1 and not Path(name).exists()]
    gpu = torch.cuda.get_device_name() if trainer.accelerator.device.type == "cuda" else None
    device = gpu or platform.processor() or platform.machine()
    completions = state.global_step * plan.completions_a_step // args.num_iterations
    lengths = [log["completions/mean_length"] for log in state.log_history if "completions/mean_length" in log]
    metadata = ModelCardData(
        base_model=base if base in on_hub else None,
        datasets=[source] if source in on_hub else None,
        library_name="peft" if settings.lora else "transformers",
        model_name=folder.path.name,
        pipeline_tag="text-generation",
        tags=["trl", "grpo"],
    )
    return ModelCard.from_template(
        metadata,
        template_path=Path(__file__).with_name("card.md"),
        status=status,
        verdict=verdict,
        number=number,
        base=_link(base, "", on_hub),
        data=_link(source, "datasets/", on_hub),
        plan=plan,
        samples=samples,
        warnings=warnings,
        cell=_cell,
        answered=_answered,
        args=args,
        state=state,
        completions=completions,
        tokens=completions * (sum(lengths) / len(lengths) if lengths else 0),
        time=f"{seconds / 60:.1f} minutes on {args.world_size} x {device}",
        kl=next((log["kl"] for log in reversed(state.log_history) if log.get("kl") is not None), None),
        best=best_in_words(args, state),
        logs=[log for log in state.log_history if "reward_best_of_group" in log],
        evaluations=[log for log in state.log_history if "eval_reward" in log],
        versions=", ".join(map(" ".join, versions().items())),
        model_id=args.hub_model_id or folder.path.absolute(),
        question=json.dumps(samples[0]["question"] if samples else "...", ensure_ascii=False),
    )


def _answered(answer: dict[str, Any] | None) -> str:
    return f"{_cell(answer['completion'])}<br>*{score_words(answer['rewards'])}*" if answer else "not yet"


def _link(name: str, kind: str, on_hub: list[str]) -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if name in on_hub else f"`{name}`"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", "<br>")
