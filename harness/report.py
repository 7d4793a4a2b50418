"""Report: readable lines and curves while a run goes on; before/after and a model card once it is over.

Nothing here may cost a run: curves take at most 0.5% of the time, and what cannot be written is a warning.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import GRPOTrainer

from harness.card import model_card, score_words
from harness.curves import draw_curves, reward_means
from harness.exits import RunError, write_whole
from harness.loading import Data
from harness.record import completions_a_step
from harness.rewarding import columns, reward_functions
from harness.samples import answer, sample_questions
from harness.settings import ROOT, Settings
from harness.verdict import verdict
from harness.watch import Watch, best_in_words


class Progress(ProgressCallback):
    """The progress bar with its time left, and one readable line a log instead of a dict of thirty keys."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and {"reward", "eval_reward"} & set(logs):
            self.training_bar.write(log_line(args, state, logs))

    def on_prediction_step(self, args, state, control, **kwargs):
        """No second bar for an evaluation."""


def log_line(args, state, logs: dict[str, float]) -> str:
    """`step 40/150  reward 3.61  emoji 1.85 | 14 tokens, 26 characters, 0% cut | KL 0.41 | 4,900 tokens/s`"""
    evaluation = "evaluation  " if "eval_reward" in logs else ""
    logs = {key.removeprefix("eval_"): value for key, value in logs.items()}
    scores = score_words(reward_means(logs), between="  ")
    length = f"{logs['completions/mean_length']:.0f} tokens"
    if "completions/mean_characters" in logs:
        length += f", {logs['completions/mean_characters']:.0f} characters"
    parts = [
        f"step {state.global_step}/{state.max_steps}  {evaluation}reward {logs['reward']:.2f}  {scores}",
        f"{length}, {logs['completions/clipped_ratio']:.0%} cut",
        f"KL {logs['kl']:.3g}" if logs.get("kl") is not None else "no KL",
    ]
    if not evaluation:
        tokens = logs["completions/mean_length"] * completions_a_step(args)
        parts.append(f"{tokens / logs['step_time']:,.0f} tokens/s")
    return " | ".join(parts)


class Report(TrainerCallback, ExportableState):
    """Writes reward_curves.png, samples.jsonl and README.md into `training.output_dir`.

    The untrained policy is asked where training begins; `finish` is to be called after it, on every process.
    """

    def __init__(self, trainer: GRPOTrainer, settings: Settings, data: Data):
        self.trainer, self.settings, self.data = trainer, settings, data
        self.watch = Watch(dict(zip(trainer.reward_func_names, trainer.args.reward_weights, strict=True)))
        self.folder = Path(trainer.args.output_dir)
        self.main = trainer.is_world_process_zero()
        self.rows = sample_questions(settings, data.held_out)
        known = {column for name, f in reward_functions().items() if name in settings.rewards for column in columns(f)}
        self.samples = [  # the lines of samples.jsonl
            {
                "question": row["prompt"][-1]["content"],
                "held_out": row["held_out"],
                **{column: row[column] for column in sorted(known & set(row))},
                "before": None,
                "after": None,
            }
            for row in self.rows
        ]
        self.over = False
        self.start = self.next_drawing = time.monotonic()
        self.seconds = 0.0

    def _read_before(self) -> list[dict[str, Any]] | None:
        try:
            text = (self.folder / "samples.jsonl").read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.splitlines()]
        except (OSError, ValueError):
            return None  # missing, or half a file
        same = [line["question"] for line in lines] == [sample["question"] for sample in self.samples]
        return [line["before"] for line in lines] if same else None

    def _fill(self, side: str, answers: list[dict[str, Any]]) -> None:
        for sample, answered in zip(self.samples, answers, strict=True):
            sample[side] = answered

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know of its first part; upstream keeps it in trainer_state.json."""
        known = {"seconds": self.seconds, "warnings": self.watch.warnings, "first": self.watch.first}
        return {"args": {}, "attributes": known}

    def on_train_begin(self, args, state, control, **kwargs):
        known = state.stateful_callbacks["Report"]["attributes"]
        self.watch.warnings, self.watch.first = known["warnings"], known["first"]
        # Not earlier: FSDP puts the model on the GPUs only now. A resumed run has a trained policy here.
        before = self._read_before() if state.global_step else answer(self.trainer, self.rows)
        self._fill("before", before or [None] * len(self.rows))
        self.write()
        self.start = time.monotonic() - known["seconds"]

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seconds = time.monotonic() - self.start
        self._attempt(self._draw)

    def on_save(self, args, state, control, **kwargs):
        self.write()

    on_push_begin = on_save

    def finish(self) -> None:
        """Ask again, write everything, print how the run ended; raises RunError where nothing was learned."""
        self._attempt(self._ask_again)
        self.next_drawing = 0.0
        self.write()
        if self.main:
            self._print_samples()
            print("\n".join(self._last_lines()))
        if self.watch.failure:
            raise RunError(self.watch.failure)

    def write(self) -> None:
        """The curves, samples.jsonl and the model card as of now."""
        for part in (self._write_samples, self._write_card, self._draw) if self.main else ():
            self._attempt(part)

    def _attempt(self, part) -> None:
        try:
            part()
        except Exception as error:  # a report is never worth a run
            message = f"the report is incomplete: {type(error).__name__}: {error}"
            self.watch.warn(self.trainer.state, part.__name__, message)

    def _ask_again(self) -> None:
        self._fill("after", answer(self.trainer, self.rows))
        self.over = True

    def _draw(self) -> None:
        begin, history = time.monotonic(), self.trainer.state.log_history
        if not self.main or not history or begin <= self.next_drawing:
            return
        draw_curves({"": history}, self.settings.rewards, self.folder / "reward_curves.png")
        self.next_drawing = time.monotonic() + 200 * (time.monotonic() - begin)  # half a percent of the time at most

    def _last_lines(self) -> list[str]:
        """Where the model is, what to do with it, what went wrong, and, last, the verdict."""
        folder, state, python = self.folder, self.trainer.state, os.path.relpath(sys.executable)
        tool = f"{'' if Path.cwd() == ROOT else f'PYTHONPATH={ROOT} '}{python} -m harness"
        processes = self.trainer.args.world_size
        start = python if processes == 1 else f"{tool}.launch --num_processes {processes}"
        model = f"{folder}-merged" if self.settings.lora else folder
        best = best_in_words(self.trainer.args, state)
        return [
            f"the model:   {folder}{best and f', {best}'}",
            *([f"merge it:    {tool}.merge {folder}"] if self.settings.lora else []),
            f"talk to it:  {tool}.chat {folder}",
            f"compare it:  {tool}.compare {folder}",
            f"go on:       {start} {os.path.relpath(ROOT / 'train_grpo.py')} --config {folder}/config.yaml "
            f"--model.pretrained_model_name_or_path {model} --training.output_dir {folder}-more",
            *(f"warning: {warning}" for warning in self.watch.warnings.values()),
            self._verdict(),
        ]

    def _verdict(self) -> str:
        return verdict(self.samples, self.watch.weights)[1]

    def shown(self) -> list[dict[str, Any]]:
        """The questions of the settings, and the first of those held out."""
        return self.samples[: len(self.settings.samples.questions) + self.settings.samples.shown]

    def _write_samples(self) -> None:
        lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in self.samples]
        write_whole(self.folder / "samples.jsonl", "".join(lines))

    def _print_samples(self) -> None:
        table = Table(title="Before and after", show_lines=True)
        for side in ("question", "before", "after"):
            table.add_column(side, overflow="fold")
        for sample in self.shown() if self.over else ():
            sides = (sample["before"], sample["after"])
            cells = [f"{side['completion']}\n{score_words(side['rewards'])}" if side else "–" for side in sides]
            table.add_row(sample["question"] + ("\n(held out)" if sample["held_out"] else ""), *cells)
        Console(highlight=False, markup=False).print(table)

    def _write_card(self) -> None:
        status = f"**Unfinished: stopped, or still running, at step {self.trainer.state.global_step:,}.**"
        if self.over:
            asked = sum(sample["held_out"] for sample in self.samples)
            status = f"**{self._verdict()}** ({asked} held-out questions, before and after; 95% intervals)"
        if self.watch.failure:
            status = f"**Failed: {self.watch.failure}.** {status}"
        write_whole(self.folder / "README.md", str(model_card(self, status)))
