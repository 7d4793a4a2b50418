"""Report: readable lines and curves while a run goes on; before/after and a model card once it is over.

Nothing here may cost a run: curves take at most 0.5% of the time, and what cannot be written is a warning.
"""

import html
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import ModelCard, ModelCardData
from rich.console import Console
from rich.table import Table
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import GRPOTrainer

from harness.checkpoints import write_whole
from harness.curves import draw_curves, reward_means, reward_title
from harness.exits import RunError
from harness.samples import answer, sample_questions
from harness.settings import Settings
from harness.watch import Watch

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


class Progress(ProgressCallback):
    """The progress bar with its time left, and one readable line a log instead of a dict of thirty keys."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and "reward" in logs and self.training_bar is not None:
            self.training_bar.write(log_line(args, state, logs))


def log_line(args, state, logs: dict[str, float]) -> str:
    """`step 40/150  reward 3.61  emoji 1.85 | 14 tokens, 26 characters, 0% cut | KL 0.41 | 4,900 tokens/s`"""
    scores = [f"{name.removesuffix('_reward')} {value:.2f}" for name, value in reward_means(logs).items()]
    length = f"{logs['completions/mean_length']:.0f} tokens"
    if "completions/mean_characters" in logs:
        length += f", {logs['completions/mean_characters']:.0f} characters"
    completions = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    parts = [
        f"step {state.global_step}/{state.max_steps}  reward {logs['reward']:.2f}  {'  '.join(scores)}",
        f"{length}, {logs['completions/clipped_ratio']:.0%} cut",
        f"KL {logs['kl']:.3g}" if logs.get("kl") is not None else "no KL",
        f"{logs['completions/mean_length'] * completions / logs['step_time']:,.0f} tokens/s",
    ]
    return " | ".join(parts)


class Report(TrainerCallback, ExportableState):
    """Writes reward_curves.png, samples.jsonl, README.md and config.yaml into `training.output_dir`.

    Made before training, when the policy is still untrained: it answers the sample questions then.
    """

    def __init__(self, trainer: GRPOTrainer, settings: Settings, held_out: Dataset, resumed: bool):
        self.trainer, self.settings = trainer, settings
        weights = [entry["weight"] for entry in settings.rewards.values()]
        self.watch = Watch(trainer, dict(zip(trainer.reward_func_names, weights, strict=True)))
        self.folder = Path(trainer.args.output_dir)
        self.main = trainer.is_world_process_zero()
        self.rows = sample_questions(settings, held_out)
        self.start = self.next_drawing = time.monotonic()
        self.seconds = 0.0
        self.before, self.after = (resumed and self._read_before()) or answer(trainer, self.rows), None
        # TRL calls this at every save and push; its own card shows neither rewards nor samples.
        trainer.create_model_card = self.write
        trainer.remove_callback(ProgressCallback)
        for callback in (Progress(), self.watch, self):
            trainer.add_callback(callback)
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "config.yaml", settings.as_yaml())
            self.write()

    def _read_before(self) -> list[dict[str, Any]] | None:
        """The untrained policy's answers, from when a run that is now resumed was started, if the questions match."""
        path = self.folder / "samples.jsonl"
        if not path.exists():
            return None
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError:
            return None  # half a file; the untrained policy is here to be asked again
        questions = [row["prompt"][-1]["content"] for row in self.rows]
        return [line["before"] for line in lines] if [line["question"] for line in lines] == questions else None

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know of its first part; upstream keeps it in trainer_state.json."""
        watch = {"warnings": self.watch.warnings, "seen": sorted(self.watch.seen), "first": self.watch.first}
        return {"args": {}, "attributes": {"seconds": self.seconds, **watch}}

    def on_train_begin(self, args, state, control, **kwargs):
        kept = state.stateful_callbacks["Report"]["attributes"]
        self.watch.warnings, self.watch.seen, self.watch.first = kept["warnings"], set(kept["seen"]), kept["first"]
        self.start = time.monotonic() - kept["seconds"]

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seconds = time.monotonic() - self.start
        if self.main and time.monotonic() > self.next_drawing:
            self._attempt(self._draw)

    def finish(self) -> None:
        """Ask again, write everything, print before and after; raises RunError where nothing was learned.

        Every process has to call this.
        """
        self._attempt(self._ask_again)
        self.next_drawing = 0.0
        self.write()
        if self.main and self.after:
            self._print_samples()
        if self.watch.failure:
            raise RunError(self.watch.failure)

    def write(self, *_: Any, **__: Any) -> None:
        """The curves, samples.jsonl and the model card as of now."""
        if self.main:
            for part in (self._write_samples, self._write_card):
                self._attempt(part)
            if self.trainer.state.log_history and time.monotonic() > self.next_drawing:
                self._attempt(self._draw)

    def _attempt(self, part) -> None:
        try:
            part()
        except Exception as error:  # a report is never worth a run
            self.watch.warn(part.__name__, f"the report is incomplete: {type(error).__name__}: {error}")

    def _ask_again(self) -> None:
        self.after = answer(self.trainer, self.rows)

    def _draw(self) -> None:
        begin = time.monotonic()
        draw_curves({"": self.trainer.state.log_history}, self.settings.rewards, self.folder / "reward_curves.png")
        self.next_drawing = time.monotonic() + 200 * (time.monotonic() - begin)  # half a percent of the time at most

    def _write_samples(self) -> None:
        lines = []
        for i, row in enumerate(self.rows):
            sides = {"before": self.before[i], "after": self.after[i] if self.after else None}
            known = {"answer": row["answer"]} if "answer" in row else {}
            line = {"question": row["prompt"][-1]["content"], "held_out": row["held_out"], **known, **sides}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        write_whole(self.folder / "samples.jsonl", "".join(lines))

    def _print_samples(self) -> None:
        table = Table(title="Before and after", show_lines=True)
        for side in ("question", "before", "after"):
            table.add_column(side, overflow="fold")
        for row, before, after in zip(self.rows, self.before, self.after, strict=True):
            cells = [f"{side['completion']}\n{_score_words(side['rewards'])}" for side in (before, after)]
            table.add_row(row["prompt"][-1]["content"] + ("\n(held out)" if row["held_out"] else ""), *cells)
        Console(highlight=False, markup=False).print(table)

    def _write_card(self) -> None:
        trainer, settings, args = self.trainer, self.settings, self.trainer.args
        state, base = trainer.state, settings.model["pretrained_model_name_or_path"]
        data = str(settings.dataset.get("data_files") or settings.dataset["path"])
        lora = settings.lora
        on_hub = [name for name in (base, data) if name.count("/") == 1 and not Path(name).exists()]
        done = self.after is not None
        gpu = torch.cuda.get_device_name() if trainer.accelerator.device.type == "cuda" else None
        device = gpu or platform.processor() or platform.machine()
        per_step = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        completions = state.global_step * per_step // args.num_iterations
        lengths = [log["completions/mean_length"] for log in state.log_history if "completions/mean_length" in log]
        generated = completions * (sum(lengths) / len(lengths) if lengths else 0)
        facts = {
            "steps": f"{state.global_step:,} of {state.max_steps:,}, {completions:,} completions",
            "time": f"{self.seconds / 60:.1f} minutes on {args.world_size} x {device}",
            "generated": f"about {generated:,.0f} tokens",
            "learning rate, beta": f"{args.learning_rate:g}, {args.beta:g}",
            "completions": f"{args.num_generations} a prompt, temperature {args.temperature:g}",
            "longest completion": f"{args.max_completion_length} tokens",
            "weights": f"{settings.model.get('dtype', 'auto')}, {'LoRA' if lora else 'all trained'}",
            "versions": ", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "torch", "datasets")),
        }
        status = "" if done else f"**Unfinished: stopped, or still running, at step {state.global_step:,}.** "
        if self.watch.failure:
            status = f"**Failed: {self.watch.failure}.** "
        card = ModelCard(
            "---\n"
            + ModelCardData(
                base_model=base if base in on_hub else None,
                datasets=[data] if data in on_hub else None,
                library_name="peft" if settings.lora else "transformers",
                model_name=self.folder.name,
                pipeline_tag="text-generation",
                tags=["trl", "grpo"],
            ).to_yaml()
            + "\n---\n\n"
            + CARD.format(
                title=self.folder.name,
                status=status,
                base=_link(base, "", on_hub),
                data=_link(data, "datasets/", on_hub),
                reward_list="\n".join(
                    f"- {entry['weight']:g} x `{name}`{_arguments(entry)}: {reward_title(name)}"
                    + ("" if entry["weight"] else " *(watched, not trained on)*")
                    for name, entry in settings.rewards.items()
                ),
                samples=self._sample_table(),
                warnings="\n".join(f"- {warning}" for warning in self.watch.warnings) or "None.",
                facts="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
                model_id=args.hub_model_id or str(self.folder),
                question=self.rows[0]["prompt"][-1]["content"] if self.rows else "富士山の高さは?",
                temperature=args.temperature,
                max_tokens=args.max_completion_length,
                licences="\n".join(
                    f"- {name}: {LICENCES.get(name, 'as its page or its author says; this model inherits it')}"
                    for name in (base, data)
                ),
                citation=trainer._paper["citation"].strip(),
            )
        )
        card.save(self.folder / "README.md")

    def _sample_table(self) -> str:
        lines = ["| question | before | after |", "|---|---|---|"]
        for i, row in enumerate(self.rows):
            sides = [self.before[i], self.after[i] if self.after else None]
            cells = [
                f"{_cell(side['completion'])}<br>*{_score_words(side['rewards'])}*" if side else "not yet"
                for side in sides
            ]
            question = _cell(row["prompt"][-1]["content"]) + (" *(held out)*" if row["held_out"] else "")
            lines.append(f"| {question} | {cells[0]} | {cells[1]} |")
        return "\n".join(lines)


def _arguments(entry: dict[str, Any]) -> str:
    words = [f"{key} = {value}" for key, value in entry.items() if key != "weight"]
    return f" ({', '.join(words)})" if words else ""


def _score_words(scores: dict[str, float | None]) -> str:
    return ", ".join(
        f"{name.removesuffix('_reward')} {'–' if score is None else f'{score:.2f}'}" for name, score in scores.items()
    )


def _link(name: str, kind: str, on_hub: list[str]) -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if name in on_hub else f"`{name}`"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", "<br>")
