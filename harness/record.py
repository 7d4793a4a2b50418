"""Record: what a run was started with, kept in its folder: settings, rewards.py, data; a resumed run must match it."""

import difflib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from harness.exits import UserError, write_whole
from harness.rewarding import rewards
from harness.settings import Settings, versions

if TYPE_CHECKING:  # so that compare need not import torch
    from trl import GRPOConfig

    from harness.loading import Data

# What may differ between a run and its continuation; everything else changes what is trained, even how often it is
# evaluated, as that uses up random numbers of the training.
FREE = ("samples", "training.output_dir", "training.run_name", "training.report_to", "training.disable_tqdm")
FREE += ("training.logging_", "training.log_", "training.save_", "training.hub_", "training.push_to_hub")
LONGER = ("training.max_steps", "training.num_train_epochs")


def write_record(settings: Settings, args: "GRPOConfig", data: "Data") -> None:
    """config.yaml, ready to run again; rewards.py; and run.json with the data's and the rewards' SHA-256."""
    folder = Path(args.output_dir)
    digest = hashlib.sha256(_rewards().encode()).hexdigest()
    run = {"rows": len(data.train), "data_sha256": data.sha256(), "rewards_sha256": digest}
    run |= {"processes": args.world_size, "step_completions": completions_a_step(args)} | versions()
    write_whole(folder / "run.json", json.dumps(run, indent=1))
    write_whole(folder / "rewards.py", _rewards())
    write_whole(folder / "config.yaml", settings.as_yaml())


def settings_of_run(path: Path) -> dict[str, Any]:
    """By dotted key, as the run was started; raises UserError where its config.yaml cannot be read."""
    try:
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; there is no run to resume, leave --resume out") from error
    except (ValueError, yaml.YAMLError):
        old = None
    if not isinstance(old, dict):
        raise UserError(f"{path}: damaged; save there what --print_config prints with the run's settings, and --resume")
    return flat(old)


def check_same_settings(settings: Settings, output_dir: str) -> None:
    """Refuse to go on with settings that change what is trained; raises UserError with old and new values."""
    path = Path(output_dir) / "config.yaml"
    old, new = settings_of_run(path), flat(settings.given)
    differ = [key for key in sorted(old | new) if old.get(key) != new.get(key) and not key.startswith(FREE)]
    if not differ:
        return
    changes = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in differ)
    more = {key: (new.get(key) or 0) - (old.get(key) or 0) for key in differ if key in LONGER}
    if len(more) == len(differ) and min(more.values()) > 0:
        raise UserError(
            f"--resume: {changes}: a run is not made longer; finish it, and start another from it: --config {path} "
            f"--model.pretrained_model_name_or_path {output_dir} --training.output_dir {output_dir}-more"
            f"{''.join(f' --{key} {steps}' for key, steps in more.items())}"
        )
    raise UserError(f"--resume: other settings than the run's: {changes}; put them back, or start a new run")


def completions_a_step(args: "GRPOConfig") -> int:
    """Of one optimizer step, in all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def check_same_run(args: "GRPOConfig", data: "Data") -> None:
    """Refuse to go on with another rewards.py, other rows or another number of processes; raises UserError."""
    folder = Path(args.output_dir)
    try:
        run, old = json.loads((folder / "run.json").read_text()), (folder / "rewards.py").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        problem = f"its run.json or rewards.py is missing or damaged ({error}); start a new run"
        raise UserError(f"{folder}: {problem}") from error
    if (then := run.get("processes", args.world_size)) != args.world_size:
        now, was = completions_a_step(args), run["step_completions"]
        how = f"python -m harness.launch --num_processes {then} train_grpo.py" if then > 1 else "python train_grpo.py"
        equal = args.gradient_accumulation_steps * was / now
        new = f" with --training.gradient_accumulation_steps {equal:g}, which keeps them" if equal.is_integer() else ""
        raise UserError(
            f"--resume: number of processes {then} -> {args.world_size}, completions a step {was} -> {now}; go on with "
            f"{how}, or start a new run{new}"
        )
    if old != _rewards():
        back = f"put it back with: cp {folder}/rewards.py rewards.py, or start a new run"
        raise UserError(f"--resume: rewards.py is not the run's: {difference(old, _rewards())}; {back}")
    if data.sha256() != run["data_sha256"]:
        rows = f"{run['rows']:,} rows then, {len(data.train):,} now"
        raise UserError(f"--resume: the data are not the run's ({rows}); put them back, or start a new run")


def note_other_rewards(settings: Settings) -> None:
    """Say so where a run's own config.yaml is used with a rewards.py that is not that run's."""
    for file in settings.options.config:
        theirs = file.with_name("rewards.py")
        if theirs.exists() and (old := theirs.read_text(encoding="utf-8")) != _rewards():
            print(f"warning: rewards.py is not the one that {file} was run with: {difference(old, _rewards())}")


def difference(old: str, new: str) -> str:
    """The first lines of a unified diff, in one line."""
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))[2:]
    changed = [line for line in lines if line[1:].strip() and not line.startswith("@@")]
    return " | ".join(changed[:4]) + (f" | ... {len(changed) - 4} more lines" if len(changed) > 4 else "")


def _rewards() -> str:
    return Path(rewards.__file__).read_text(encoding="utf-8")


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    if not isinstance(settings, dict) or not settings:
        return {prefix.removesuffix("."): settings}
    return {key: value for name, part in settings.items() for key, value in flat(part, f"{prefix}{name}.").items()}
