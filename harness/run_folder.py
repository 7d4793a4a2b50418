"""RunFolder: `training.output_dir`, every file of ours in it, and which of its checkpoints are whole.

Plain YAML and JSON, without TRL, so that the tools read a run in a moment.
"""

import difflib
import itertools
import json
import os
import platform
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from harness.errors import SMALLER, RunError, Stopped, UserError, one_line, out_of_memory
from harness.files import fault, write_whole
from harness.processes import failed_elsewhere, first_decides, rank
from harness.reward import logged_name


class RunFolder:
    """The folder of a run; trainer_state.json is upstream's, written when training is over.

    What begins with _ in it is never uploaded.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.settings_file, self.rewards_file = self.path / "config.yaml", self.path / "rewards.py"
        self.run_file, self.status_file = self.path / "run.json", self.path / "status.json"
        self.samples_file, self.state_file = self.path / "samples.jsonl", self.path / "trainer_state.json"
        self.card, self.curves = self.path / "README.md", self.path / "reward_curves.png"

    def __str__(self) -> str:
        return str(self.path)

    # ---- what a run was started with, and what it has found

    def record(self, settings: str, rewards: str, run: dict[str, Any]) -> None:
        """Keep what a run is started with: its settings (YAML), its rewards.py, and what else a resume must match."""
        write_whole(self.run_file, json.dumps(run, indent=1, ensure_ascii=False))
        write_whole(self.rewards_file, rewards)
        write_whole(self.settings_file, settings)

    def settings(self) -> dict[str, Any]:
        """The sections of its config.yaml as plain values; raises UserError where there is none, or half a file."""
        try:
            sections = yaml.safe_load(self.settings_file.read_text(encoding="utf-8"))
        except OSError as error:
            problem = "no run (no config.yaml); name an output_dir that was trained into"
            raise UserError(f"{self}: {problem}") from error
        except (ValueError, yaml.YAMLError):
            sections = None
        if not isinstance(sections, dict) or not isinstance(sections.get("rewards"), dict):
            problem = "its config.yaml is damaged; save there what --print_config prints with the run's settings"
            raise UserError(f"{self}: {problem}")
        sections.pop("complete", None)
        return sections

    def weights(self) -> dict[str, float]:
        """The weight of each reward, by the name that it is logged under."""
        return {logged_name(name): entry["weight"] for name, entry in self.settings()["rewards"].items()}

    def titles(self) -> dict[str, str]:
        """What each reward measures; {} where that was not recorded."""
        try:
            return self.run().get("titles", {})
        except (OSError, ValueError):
            return {}

    def trained(self) -> dict[str, Any]:
        """Its settings, once it has left its model; raises UserError before that."""
        settings = self.settings()
        weights = any((self.path / name).exists() for name in ("config.json", "adapter_config.json"))
        if not (self.state_file.exists() and weights):
            raise UserError(f"{self}: the run has left no model yet; finish it with --resume")
        return settings

    def is_lora(self) -> bool:
        return (self.path / "adapter_config.json").exists()

    def run(self) -> dict[str, Any]:
        """run.json; raises OSError or ValueError."""
        return json.loads(self.run_file.read_text(encoding="utf-8"))

    def samples(self) -> list[dict[str, Any]] | None:
        """The lines of samples.jsonl; None where there is no such file, or half of one."""
        try:
            with self.samples_file.open(encoding="utf-8") as file:
                return [json.loads(line) for line in file]
        except (OSError, ValueError):
            return None

    def write_samples(self, samples: list[dict[str, Any]]) -> None:
        # A column of the data may hold what JSON cannot: a date, bytes.
        lines = (json.dumps(each, ensure_ascii=False, default=str) + "\n" for each in samples)
        write_whole(self.samples_file, "".join(lines))

    def state(self) -> dict[str, Any]:
        """Upstream's TrainerState, the newest there is; raises UserError where there is none.

        A run that is stopped half-way has it in its checkpoints only; of a run that is extended, the folder has that of
        its first end until its second.
        """
        name, found = self.state_file.name, {}
        files = [folder / name for folder in (self.path, *reversed(self.checkpoints())) if (folder / name).exists()]
        for file in reversed(files[:2]):  # of the same step the folder's own, which is complete
            try:
                state = json.loads(file.read_text(encoding="utf-8"))
                found[state["global_step"]] = file, state, any("reward" in log for log in state["log_history"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{file}: not readable ({error}); the file is damaged, name another run") from error
        if not found:
            problem = "holds no run (no trainer_state.json); name an output_dir that was trained into"
            raise UserError(f"{self}: {problem}")
        file, state, logged = found[max(found)]
        if not logged:
            raise UserError(f"{file}: no reward was logged; train for at least logging_steps steps")
        return state

    # ---- while a run goes on: its lock, and how it stands

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold its lock, which dies with the process, and write how it ends; raises UserError where it is in use."""
        lock, holder = FileLock(self.path / "_lock"), self.path / "_lock_holder"

        def take() -> None:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except (Timeout, OSError) as error:
                in_use = isinstance(error, Timeout)
                by = f"in use by another run ({holder.read_text()})" if in_use else f"not to be locked: {error}"
                remedy = "wait for it, stop it, or choose another"
                raise UserError(f"training.output_dir: {self} is {by}; {remedy}") from None
            holder.write_text(f"process {os.getpid()} on {platform.node()}")

        first_decides(take)
        try:
            with self._status_written():
                yield
        finally:
            lock.release()

    def status(self) -> dict[str, Any]:
        """What write_status has written; {} where there is nothing, or something else."""
        try:
            return dict(json.loads(self.status_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def write_status(self, status: str, exit_status: int | None = None, **more: Any) -> None:
        """status.json, for a script to read: running, done, failed or stopped; exit status, step, time and verdict.

        After a kill -9 it still says running, and the time of the last log, when the run was last seen alive.
        """
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with suppress(OSError):  # a full disk, which is reported elsewhere
            known = self.status() | {"status": status, "exit_status": exit_status, "time": now} | more
            write_whole(self.status_file, json.dumps(known))

    @contextmanager
    def _status_written(self) -> Iterator[None]:
        """Write status.json, and turn what is raised inside into a RunError of one line, its traceback in error.log.

        Of several processes rank 0 writes it; where harness.tools.launch started them, the first that fails instead.
        """
        ended: tuple[str, int] = ("failed", 1)
        try:
            if rank() == 0:
                self.write_status("running", verdict=None)  # that of an earlier run in this folder
            yield
            ended = ("done", 0)
        except Stopped as stopped:
            ended = ("stopped", 128 + stopped.number)
            raise
        except UserError:
            ended = ("failed", 2)
            raise
        except RunError:
            raise
        except Exception as error:
            raise RunError(self._with_traceback(error)) from error
        finally:
            if (rank() == 0 or ended[0] == "failed") and not failed_elsewhere():
                self.write_status(*ended)

    def _with_traceback(self, error: Exception) -> str:
        """What to tell the user, and where the traceback is."""
        log = self.path / "error.log"
        where = f"traceback: {log}"
        try:
            if not failed_elsewhere():
                log.parent.mkdir(parents=True, exist_ok=True)
                log.write_text(traceback.format_exc(), encoding="utf-8")
        except OSError as problem:  # a full disk, for example: print the traceback instead
            traceback.print_exc()
            where = f"no traceback in {log}: {problem.strerror}"
        words = one_line(error) or type(error).__name__
        if out_of_memory(error):
            words = f"out of memory ({one_line(error, 120)}); {SMALLER}"
        return f"{words} ({where})"

    # ---- checkpoints

    def checkpoint(self, step: int) -> Path:
        return self.path / f"checkpoint-{step}"

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first; a folder that the user has renamed is left alone."""
        found = [path for path in self.path.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))

    def newest_complete(self) -> Path | None:
        """The newest checkpoint without a fault, or None; newer ones that have one are named and set aside."""
        for checkpoint in reversed(self.checkpoints()):
            if (problem := fault(checkpoint)) is None:
                return checkpoint
            names = (checkpoint.with_name(f"_set-aside-{i}-{checkpoint.name}") for i in itertools.count(1))
            aside = next(name for name in names if not name.exists())
            checkpoint.rename(aside)
            print(f"warning: {checkpoint.name} is not used: {problem}; set aside as {aside.name}", flush=True)
        return None


def difference(old: str, new: str) -> str:
    """The first lines of a unified diff, in one line."""
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))[2:]
    changed = [line for line in lines if line[1:].strip() and not line.startswith("@@")]
    return " | ".join(changed[:4]) + (f" | ... {len(changed) - 4} more lines" if len(changed) > 4 else "")


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    if not isinstance(settings, dict) or not settings:
        return {prefix.removesuffix("."): settings}
    return {key: value for name, part in settings.items() for key, value in flat(part, f"{prefix}{name}.").items()}
