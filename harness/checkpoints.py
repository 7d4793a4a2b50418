"""Checkpoints: one counts only with its manifest, which is written last; resuming takes the newest that still matches.

TRL and transformers write and read them; but they write in place, take the highest number for the newest, check
nothing, and start a fresh optimizer where its file is missing.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, TrainingArguments

from harness.exits import UserError
from harness.settings import Settings

MANIFEST = "manifest.json"
# What may differ between a run and its continuation; everything else changes what is trained.
FREE = (
    "logging_",
    "save_",
    "eval_",
    "report_to",
    "run_name",
    "hub_",
    "push_to_hub",
    "log_",
    "disable_tqdm",
    "output_dir",
)


class Checkpoints(TrainerCallback):
    """Seals every checkpoint after it has been saved, and only then deletes those over `save_total_limit`."""

    def __init__(self, arguments: TrainingArguments):
        self.limit, arguments.save_total_limit = arguments.save_total_limit, None  # Trainer deletes before we can seal

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        seal(folder / f"checkpoint-{state.global_step}")
        if self.limit:
            for old in _numbered(folder)[: -self.limit]:
                shutil.rmtree(old)


def seal(checkpoint: Path) -> None:
    """Write the manifest of `checkpoint`: the size and SHA-256 of every file."""
    files = {
        str(p.relative_to(checkpoint)): p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.name != MANIFEST
    }
    entries = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items()}
    temporary = checkpoint / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    temporary.replace(checkpoint / MANIFEST)


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is as it was sealed."""
    try:
        entries = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it has no manifest: it was not finished"
    except ValueError:
        return f"{MANIFEST} is damaged"
    for name, entry in entries.items():
        path = checkpoint / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {entry['bytes']:,}"
        if _sha256(path) != entry["sha256"]:
            return f"{name} has changed since it was saved"
    return None


def newest_complete(output_dir: str) -> Path:
    """The newest checkpoint without a fault; newer ones that have one are named and set aside. Raises UserError."""
    checkpoints = _numbered(Path(output_dir))
    for checkpoint in reversed(checkpoints):
        if (problem := fault(checkpoint)) is None:
            return checkpoint
        aside = checkpoint.with_name(f"incomplete-{checkpoint.name}")
        if aside.exists():
            shutil.rmtree(aside)
        checkpoint.rename(aside)
        print(f"warning: {checkpoint.name} is not used: {problem}; set aside as {aside.name}", flush=True)
    raise UserError(
        f"training.output_dir: {output_dir} has no complete checkpoint ({len(checkpoints)} tried) to resume from; "
        "start anew without --resume in another folder"
    )


def check_same_run(settings: Settings) -> None:
    """Refuse to continue a run with settings that change what is trained; raises UserError with old and new values."""
    path = Path(settings.training["output_dir"]) / "config.yaml"
    try:
        old = _flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable ({error}); there is no run to resume, leave --resume out") from error
    new = _flat(settings.merged)
    differ = [key for key in sorted(old | new) if old.get(key) != new.get(key) and not _is_free(key)]
    if differ:
        changes = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in differ)
        raise UserError(f"--resume: other settings than the run's: {changes}; put them back, or start a new run")


def _is_free(key: str) -> bool:
    section, _, name = key.partition(".")
    return section == "samples" or (section == "training" and name.startswith(FREE))


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict) or not settings:
        return {prefix.removesuffix("."): settings}
    return {key: value for name, part in settings.items() for key, value in _flat(part, f"{prefix}{name}.").items()}


def _numbered(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
