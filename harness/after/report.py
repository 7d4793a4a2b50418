"""Report: curves while a run goes on; samples, before/after and a model card once it is over.

Nothing here may cost a run: drawing curves is given at most 1% of the time, and what cannot be written is a warning.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import GRPOTrainer

from harness.after.card import model_card
from harness.after.curves import draw_curves
from harness.after.samples import ask, rows_to_ask
from harness.after.verdict import Verdict, likely_reason, verdict
from harness.before.plan import Plan
from harness.during.watch import Watch, best_in_words
from harness.errors import RunError, in_short, one_line
from harness.files import write_whole
from harness.reward import score_words
from harness.run_folder import RunFolder
from harness.settings import ROOT


class Report(TrainerCallback, ExportableState):
    """Writes reward_curves.png, samples.jsonl and README.md into `training.output_dir`.

    The untrained policy is asked where training begins; `finish` is to be called after it, on every process.
    """

    def __init__(self, trainer: GRPOTrainer, plan: Plan, watch: Watch, folder: RunFolder):
        self.trainer = trainer
        self.plan = plan
        self.watch = watch
        self.folder = folder
        self.settings = plan.settings
        self.placebo = plan.settings.options.placebo
        self.rewards = plan.rewards
        self.main = trainer.is_world_process_zero()
        self.held_out = len(plan.data.held_out)
        self.rows = rows_to_ask(self.settings.samples.questions, self.settings.prompts.system, plan.data.held_out)
        self.before: list[dict[str, Any] | None] = [None] * len(self.rows)
        self.after = self.before
        self.over = False
        self.seconds = 0.0
        self.start = time.monotonic()
        self.next_drawing = self.start

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know of its first part; upstream keeps it in trainer_state.json."""
        return {"args": {}, "attributes": {"seconds": self.seconds}}

    def on_train_begin(self, args, state, control, **kwargs):
        # Not earlier: FSDP puts the model on the GPUs only now. A resumed run has a trained policy here.
        if state.global_step == 0:
            self.before = ask(self.trainer, self.rewards, self.rows)
        else:
            self.before = self._kept_before()
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
            self.after = ask(self.trainer, self.rewards, self.rows)
            self.over = True
        except Exception as error:  # of a reward: a judge that hangs up
            problem = "the model is trained and saved, but asking the questions again failed"
            self.watch.failure = self.watch.failure or f"{problem} ({one_line(error)}); --resume asks them"
        self.next_drawing = 0.0
        self.write()
        if self.main:
            self.folder.write_status("running", verdict=asdict(self.verdict()))
            self._print_samples()
            for line in self._last_lines():
                print(line)
        if self.watch.failure:
            raise RunError(self.watch.failure)

    def write(self) -> None:
        """The curves, samples.jsonl and the model card as of now."""
        if self.main:
            self._attempt(self._write_samples)
            self._attempt(self._write_card)
            self._attempt(self._draw)

    def _attempt(self, part: Callable[[], None]) -> None:
        try:
            part()
        except Exception as error:  # a report is never worth a run
            self.watch.warn(self.trainer.state, part.__name__, f"the report is incomplete: {in_short(error)}")

    def samples(self) -> list[dict[str, Any]]:
        """The lines of samples.jsonl."""
        columns = sorted({column for reward in self.rewards for column in reward.columns})
        samples = []
        for row, before, after in zip(self.rows, self.before, self.after, strict=True):
            sample = {"question": row["prompt"][-1]["content"], "held_out": row["held_out"]}
            for column in columns:
                if column in row:
                    sample[column] = row[column]
            samples.append(sample | {"before": before, "after": after})
        return samples

    def shown(self) -> list[dict[str, Any]]:
        """Of the samples those for a person: the first of those held out, and the questions of the settings."""
        samples = self.samples()
        own = len(self.settings.samples.questions)
        held_out = samples[own:]
        return held_out[: self.settings.samples.shown] + samples[:own]

    def verdict(self) -> Verdict:
        """On the samples as they are; where nothing was learned with the likely reason."""
        found = verdict(self.samples(), {reward.logged: reward.weight for reward in self.rewards})
        learned = any(change.word == "learned" for change in found.changes)
        if self.placebo:
            found.line = f"placebo: {found.line}"
        elif found.word in ("unchanged", "unclear") and not learned:
            state = self.trainer.state
            moved = not self.watch.failure  # with answers it can only be that no weight has moved
            trained = [reward.logged for reward in self.rewards if reward.weight]
            reason = likely_reason(state.log_history, state.global_step, moved, self.plan.too_slow, trained)
            if reason:
                found.line += f"; likely reason: {reason}"
        return found

    def _kept_before(self) -> list[dict[str, Any] | None]:
        """The answers of the untrained policy, from before the run was stopped; None to a question that is new."""
        kept = {}
        for line in self.folder.samples() or ():
            kept[line["question"], line["held_out"]] = line["before"]
        return [kept.get((sample["question"], sample["held_out"])) for sample in self.samples()]

    def _draw(self) -> None:
        begin = time.monotonic()
        history = self.trainer.state.log_history
        if not self.main or not history or begin <= self.next_drawing:
            return
        weights = {reward.logged: reward.weight for reward in self.rewards}
        draw_curves({"": history}, weights, self.folder.curves)
        end = time.monotonic()
        self.next_drawing = end + 100 * (end - begin)

    def _write_samples(self) -> None:
        self.folder.write_samples(self.samples())

    def _write_card(self) -> None:
        write_whole(self.folder.card, str(model_card(self)))

    def _print_samples(self) -> None:
        """No table: in a notebook Japanese letters are not as wide as two of ours, and its lines would not meet."""
        for sample in self.shown() if self.over else ():
            held_out = " (held out)" if sample["held_out"] else ""
            print(f"\n{sample['question']}{held_out}")
            print(f"  before: {_with_scores(sample['before'])}")
            print(f"  after: {_with_scores(sample['after'])}")
        print()

    def _last_lines(self) -> list[str]:
        """Where the model is, what to do with it, what went wrong, and, last, the verdict."""
        folder = quote(str(self.folder))
        tool = _tool()
        best = best_in_words(self.trainer.args, self.trainer.state)
        lines = [f"the model:   {self.folder}, {best}" if best else f"the model:   {self.folder}"]
        if self.settings.lora:
            lines.append(f"merge it:    {tool} merge {folder}")
        lines.append(f"talk to it:  {tool} chat {folder}")
        lines.append(f"compare it:  {tool} compare {folder}")
        lines.append(f"go on:       {self._going_on()}")
        for warning in self.watch.warnings.values():
            lines.append(f"warning: {warning}")
        lines.append(self.verdict().line)
        return lines

    def _going_on(self) -> str:
        """The command that trains the trained model further; of a LoRA run the merged one."""
        processes = self.trainer.args.world_size
        start = f"{_tool()} launch --num_processes {processes}" if processes > 1 else _python()
        script = quote(os.path.relpath(ROOT / "train_grpo.py"))
        settings = quote(str(self.folder.settings_file))
        model = quote(f"{self.folder}-merged" if self.settings.lora else str(self.folder))
        more = quote(f"{self.folder}-more")
        command = f"{start} {script} --config {settings}"
        command += f" --rewards_file {quote(str(self.folder.rewards_file))}"
        if self.placebo:
            command += " --placebo"
        return f"{command} --model.pretrained_model_name_or_path {model} --training.output_dir {more}"


def _python() -> str:
    return quote(os.path.relpath(sys.executable))


def _tool() -> str:
    """How a shell starts one of the tools from where it is."""
    tool = f"{_python()} -m harness"
    return tool if Path.cwd() == ROOT else f"PYTHONPATH={quote(str(ROOT))} {tool}"


def _with_scores(answer: dict[str, Any] | None) -> str:
    if answer is None:
        return "–"
    return f"{answer['completion']}\n  ({score_words(answer['rewards'])})"
