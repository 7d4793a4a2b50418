"""Report: curves while a run goes on; samples, before/after and a model card once it is over.

Nothing here may cost a run: drawing curves is given at most 5% of the time, and what cannot be written is a warning.
"""

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import GRPOTrainer

from harness.after.card import model_card
from harness.after.curves import draw_curves, earlier_logs
from harness.after.samples import ask, rows_to_ask
from harness.after.verdict import Verdict, likely_reason, verdict
from harness.before.plan import Plan
from harness.during.watch import Watch, best_in_words
from harness.errors import RunError, one_line
from harness.files import write_whole
from harness.reward import score_words
from harness.run_folder import RunFolder
from harness.settings import ROOT


class Report(TrainerCallback, ExportableState):
    """Writes reward_curves.png, samples.jsonl and README.md into `training.output_dir`.

    The untrained policy is asked where training begins; `finish` is to be called after it, on every process.
    """

    def __init__(self, trainer: GRPOTrainer, plan: Plan, watch: Watch, folder: RunFolder):
        self.trainer, self.plan, self.watch, self.folder = trainer, plan, watch, folder
        self.settings, self.rewards = plan.settings, plan.rewards
        self.main = trainer.is_world_process_zero()
        questions, system = plan.settings.samples.questions, plan.settings.prompts.system
        self.rows = rows_to_ask(questions, system, plan.data.held_out)
        self.before: list[dict[str, Any] | None] = [None] * len(self.rows)
        self.after = self.before
        self.over = False
        self.start = self.next_drawing = time.monotonic()
        self.earlier: list[dict[str, Any]] | None = None  # the logs of the run that this one goes on from
        self.seconds = 0.0

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know of its first part; upstream keeps it in trainer_state.json."""
        return {"args": {}, "attributes": {"seconds": self.seconds}}

    def on_train_begin(self, args, state, control, **kwargs):
        # Not earlier: FSDP puts the model on the GPUs only now. A resumed run has a trained policy here.
        self.before = self._kept_before() if state.global_step else ask(self.trainer, self.rewards, self.rows)
        self.write()
        self.start = time.monotonic() - state.stateful_callbacks["Report"]["attributes"]["seconds"]

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seconds = time.monotonic() - self.start
        self._attempt(self._draw)

    def on_save(self, args, state, control, **kwargs):
        self.write()

    on_push_begin = on_save

    def finish(self) -> None:
        """Ask again, write everything, print how the run ended; raises RunError where it ended badly."""
        try:
            self._ask_again()
        except Exception as error:  # of a reward: a judge that hangs up
            problem = f"the model is trained, and saved in {self.folder}; but asking the questions again failed"
            self.watch.failure = self.watch.failure or f"{problem} ({one_line(error)}); --resume asks them"
        self.next_drawing = 0.0
        self.write()
        if self.main:
            self.folder.write_status("running", verdict=asdict(self._verdict()))
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

    def samples(self) -> list[dict[str, Any]]:
        """The lines of samples.jsonl."""
        columns = sorted({column for reward in self.rewards for column in reward.columns})
        return [
            {"question": row["prompt"][-1]["content"], "held_out": row["held_out"]}
            | {column: row[column] for column in columns if column in row}
            | {"before": before, "after": after}
            for row, before, after in zip(self.rows, self.before, self.after, strict=True)
        ]

    def _kept_before(self) -> list[dict[str, Any] | None]:
        """The answers of the untrained policy, from before the run was stopped; None to a question that is new."""
        kept = {(line["question"], line["held_out"]): line["before"] for line in self.folder.samples() or ()}
        return [kept.get((sample["question"], sample["held_out"])) for sample in self.samples()]

    def _ask_again(self) -> None:
        self.after = ask(self.trainer, self.rewards, self.rows)
        self.over = True

    def _draw(self) -> None:
        begin, history = time.monotonic(), self.trainer.state.log_history
        if not self.main or not history or begin <= self.next_drawing:
            return
        titles = {reward.logged: reward.title for reward in self.rewards}
        weights = {reward.logged: reward.weight for reward in self.rewards}
        if self.earlier is None:
            self.earlier = earlier_logs(self.folder)
        draw_curves({"": self.earlier + history}, titles, self.folder.curves, weights)
        end = time.monotonic()
        self.next_drawing = end + pause(end - begin)

    def _last_lines(self) -> list[str]:
        """Where the model is, what to do with it, what went wrong, and, last, the verdict."""
        state, python = self.trainer.state, os.path.relpath(sys.executable)
        folder, more, merged = (quote(f"{self.folder}{end}") for end in ("", "-more", "-merged"))
        model = merged if self.settings.lora else folder
        tool = f"{'' if Path.cwd() == ROOT else f'PYTHONPATH={quote(str(ROOT))} '}{quote(python)} -m harness"
        processes = self.trainer.args.world_size
        start = quote(python) if processes == 1 else f"{tool} launch --num_processes {processes}"
        script, settings = (
            quote(str(path)) for path in (os.path.relpath(ROOT / "train_grpo.py"), self.folder.settings_file)
        )
        best = best_in_words(self.trainer.args, state)
        return [
            f"the model:   {self.folder}{best and f', {best}'}",
            *([f"merge it:    {tool} merge {folder}"] if self.settings.lora else []),
            f"talk to it:  {tool} chat {folder}",
            f"compare it:  {tool} compare {folder}",
            f"{'then go on: ' if self.settings.lora else 'go on:      '} {start} {script} --config {settings} "
            f"--model.pretrained_model_name_or_path {model} --training.output_dir {more}",
            *(f"warning: {warning}" for warning in self.watch.warnings.values()),
            self._verdict().line,
        ]

    def _verdict(self) -> Verdict:
        found = verdict(self.samples(), {reward.logged: reward.weight for reward in self.rewards})
        if found.word in ("no change", "not learned"):
            state, moved = self.trainer.state, not self.watch.failure  # which is, with answers, that no weight moved
            reason = likely_reason(state.log_history, state.global_step, moved, self.plan.too_slow)
            found.line += f"; likely because {reason}" if reason else ""
        return found

    def _shown(self) -> list[dict[str, Any]]:
        """The questions of the settings, and the first of those held out."""
        return self.samples()[: len(self.settings.samples.questions) + self.settings.samples.shown]

    def _write_samples(self) -> None:
        self.folder.write_samples(self.samples())

    def _print_samples(self) -> None:
        table = Table(title="Before and after", show_lines=True)
        for side in ("question", "before", "after"):
            table.add_column(side, overflow="fold")
        for sample in self._shown() if self.over else ():
            sides = (sample["before"], sample["after"])
            cells = [f"{side['completion']}\n{score_words(side['rewards'])}" if side else "–" for side in sides]
            table.add_row(sample["question"] + ("\n(held out)" if sample["held_out"] else ""), *cells)
        Console(highlight=False, markup=False).print(table)

    def _write_card(self) -> None:
        status = f"**Unfinished: stopped, or still running, at step {self.trainer.state.global_step:,}.**"
        found = self._verdict() if self.over else None
        if found:
            asked = sum(row["held_out"] for row in self.rows)
            status = f"**{found.line}** ({asked} held-out questions, before and after; 95% intervals)"
        if self.watch.failure:
            status = f"**Failed: {self.watch.failure}.** {status}"
        warnings = [*self.watch.warnings.values()]
        card = model_card(self.trainer, self.plan, self.folder, self._shown(), warnings, self.seconds, status, found)
        write_whole(self.folder.card, str(card))


def pause(drawing: float) -> float:
    """Seconds to the next drawing, by those of the last: 0.5% of the time, more for a picture a minute, at most 5%."""
    return max(20 * drawing, min(200 * drawing, 60))
