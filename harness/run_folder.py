"""RunFolder: `training.output_dir`, every file of ours in it, and which of its checkpoints are whole.

Plain YAML and JSON, without TRL, so that the tools read a run in a moment.
"""

import difflib
import itertools
import json
import os
import platform
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from harness.errors import SMALLER, RunError, Stopped, UserError, in_short, one_line, out_of_memory
from harness.files import fault, write_whole
from harness.processes import failed_elsewhere, first_decides, rank
from harness.reward import logged_name

LOG = re.compile(r"log|\.(out|err)$")  # in the name of what a launcher writes, or `| tee`, before the run begins


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
        self.holder = self.path / "_lock_holder"

    def __str__(self) -> str:
        return str(self.path)

    # ---- what a run was started with, and what it has found

    def record(self, settings: str, rewards: str, run: dict[str, Any]) -> None:
        """Keep what a run is started with: its settings (YAML), its rewards.py, and what else a resume must match."""
        write_whole(self.run_file, json.dumps(run, indent=1, ensure_ascii=False))
        write_whole(self.rewards_file, rewards)
        write_whole(self.settings_file, settings)

    def settings(self) -> dict[str, Any]:
        """The sections of its config.yaml as plain values; raises UserError where it is missing or damaged."""
        sections = _read(self.settings_file, yaml.safe_load)
        sections.pop("complete", None)
        return sections

    def weights(self) -> dict[str, float]:
        """The weight of each reward, by the name that it is logged under."""
        return {logged_name(name): entry["weight"] for name, entry in self.settings()["rewards"].items()}

    def is_placebo(self) -> bool:
        """Whether it was started with --placebo."""
        return bool(self.run().get("placebo"))

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
        """run.json; raises UserError where it is missing or damaged."""
        return _read(self.run_file, json.loads)

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
        places = [self.path, *reversed(self.checkpoints())]  # of the same step the folder's own, which is complete
        files = [place / self.state_file.name for place in places]
        there = [file for file in files if file.exists()]
        states = [_read(file, json.loads) for file in there[:2]]
        if not states:
            raise UserError(f"{self}: holds no run (no trainer_state.json)")
        newest = max(states, key=lambda state: state["global_step"])
        if not any("reward" in log for log in newest["log_history"]):
            raise UserError(f"{self}: no reward was logged; train for at least logging_steps steps")
        return newest

    # ---- while a run goes on: its lock, and how it stands

    def why_taken(self) -> str | None:
        """Why no run may begin there: it holds one that can go on, or what no run has made; else None."""
        if self.checkpoints() or self.state_file.exists():
            return f"{self} already holds a run; go on with it by --resume, or choose another folder"
        for path in sorted(self.path.glob("*")):
            if not self.holder.exists() and not LOG.search(path.name):  # the holder is what a run leaves first
                return f"{self} is not empty, and not a run's (it has {path.name}); choose another folder"
        return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold its lock, which dies with the process, and write how it ends; raises UserError where it is in use."""
        lock = FileLock(self.path / "_lock")
        first_decides(lambda: self._take(lock))
        try:
            with self._status_written():
                yield
        finally:
            lock.release()

    def room(self) -> int:
        """Bytes that are free there, found by taking it as a run does; nothing of that is left. Raises UserError."""
        lock = FileLock(self.path / "_lock")
        paths = (self.path / "_lock", self.holder, self.path, *self.path.parents)
        new = [path for path in paths if not os.path.lexists(path)]
        try:
            no_lock = self._take(lock)
            if no_lock:
                print(f"note: {self} cannot be locked ({no_lock}); start no other run in it", flush=True)
            return shutil.disk_usage(self.path).free
        finally:
            lock.release()
            for path in new:
                if os.path.isdir(path):
                    path.rmdir()
                elif os.path.lexists(path):
                    path.unlink()

    def _take(self, lock: FileLock) -> OSError | None:
        """Make it, lock it, and write to it; returns why it cannot be locked, as on some file systems."""
        no_lock = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                holder = self.holder.read_text()
                raise UserError(f"{self} is in use by another run ({holder})") from error
            except OSError as error:
                no_lock = error
            self.holder.write_text(f"process {os.getpid()} on {platform.node()}")
        except OSError as error:
            raise UserError(f"{self} cannot be written: {error}") from error
        return no_lock

    def status(self) -> dict[str, Any]:
        """What write_status has written; {} where there is nothing, or something else."""
        try:
            return _read(self.status_file, json.loads)
        except UserError:
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
        status, exit_status = "failed", 1
        try:
            if rank() == 0:
                self.write_status("running", verdict=None)  # that of an earlier run in this folder
            yield
            status, exit_status = "done", 0
        except Stopped as stopped:
            status, exit_status = "stopped", 128 + stopped.number
            raise
        except UserError:
            exit_status = 2
            raise
        except RunError:
            raise
        except Exception as error:
            raise RunError(self._with_traceback(error)) from error
        finally:
            if (rank() == 0 or status == "failed") and not failed_elsewhere():
                self.write_status(status, exit_status)

    def _with_traceback(self, error: Exception) -> str:
        """What to tell the user, and where the traceback is."""
        log = self.path / "error.log"
        where = f"traceback: {log}"
        try:
            if not failed_elsewhere():
                log.write_text(traceback.format_exc(), encoding="utf-8")
        except OSError as problem:  # a full disk, for example: print the traceback instead
            traceback.print_exc()
            where = f"no traceback in {log}: {problem.strerror}"
        said = one_line(error) or type(error).__name__
        if out_of_memory(error):
            said = f"out of memory ({one_line(error, 120)}); {SMALLER}"
        for note in getattr(error, "__notes__", []):  # what to do, by whoever let it pass
            said += f"; {one_line(note)}"
        return f"{said} ({where})"

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
            problem = fault(checkpoint)
            if problem is None:
                return checkpoint
            aside = self._set_aside(checkpoint)
            print(f"warning: {checkpoint.name} is not used: {problem}; set aside as {aside.name}", flush=True)
        return None

    def _set_aside(self, checkpoint: Path) -> Path:
        for number in itertools.count(1):
            aside = checkpoint.with_name(f"_set-aside-{number}-{checkpoint.name}")
            if not aside.exists():
                return checkpoint.rename(aside)


def _read(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        return dict(parse(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: missing or damaged: {in_short(error)}") from error


def difference(old: str, new: str) -> str:
    """The first lines of a unified diff, in one line."""
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))[2:]
    changed = [line for line in lines if line[1:].strip() and not line.startswith("@@")]
    shown = changed[:4]
    if len(changed) > 4:
        shown.append(f"... {len(changed) - 4} more")
    return " | ".join(shown)


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    if not isinstance(settings, dict) or not settings:
        return {prefix.removesuffix("."): settings}
    found = {}
    for name, part in settings.items():
        found |= flat(part, f"{prefix}{name}.")
    return found
