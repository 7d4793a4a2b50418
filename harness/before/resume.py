"""Resume: whether a run goes on, from which checkpoint, and with nothing that would change what it trains."""

import sys
from pathlib import Path
from shlex import quote

from harness.before.plan import Plan
from harness.errors import UserError
from harness.rewards_file import shown, source
from harness.run_folder import RunFolder, difference, flat
from harness.settings import Settings, versions

# What may differ between a run and its continuation; everything else changes what is trained, even how often it is
# evaluated, as that uses up random numbers of the training.
MAY_DIFFER = (
    "samples",
    "training.output_dir",
    "training.run_name",
    "training.report_to",
    "training.disable_tqdm",
    "training.cache_implementation",  # where compiled sampling has failed
    "training.logging_",
    "training.log_",
    "training.save_",
    "training.hub_",
    "training.push_to_hub",
)
LENGTH = {"training.max_steps", "training.num_train_epochs"}


def decide(settings: Settings, folder: RunFolder) -> bool | str:
    """What --resume comes to, once the settings are the run's; raises UserError where they are not.

    False: a run begins; so it does with `auto` where there is no checkpoint. With `auto` and a run that is done the
    program ends.
    """
    resume = settings.options.resume
    if not resume:
        return False
    done = folder.status().get("status") == "done"
    if resume == "auto":
        if settings.training.get("save_only_model"):
            raise settings.error("training.save_only_model", "with it --resume auto would start anew each time")
        if not folder.checkpoints() and not done:
            return False
    if not folder.settings_file.exists():
        raise UserError(f"--resume: {folder} holds no run to resume (no config.yaml)")
    _check_same_settings(settings, folder)
    if resume == "auto" and done:
        print(f"{folder}: this run is done")
        sys.exit()
    return resume


def check_same_run(plan: Plan, folder: RunFolder) -> None:
    """Refuse to go on with another rewards.py, other rows or another number of processes; raises UserError."""
    try:
        run = folder.run()
        rows = run["rows"]
        digest = run["data_sha256"]
        processes = run["processes"]
        rewards = folder.rewards_file.read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: its run.json or rewards.py is missing or damaged: {error!r}") from error
    if processes != plan.args.world_size:
        raise UserError(
            f"--resume: number of processes {processes} -> {plan.args.world_size}; "
            f"go on with python -m harness launch --num_processes {processes} train_grpo.py"
        )
    if rewards != source():
        changes = difference(rewards, source())
        raise UserError(f"--resume: {shown()} is not the run's: {changes}; that one is {folder.rewards_file}")
    if plan.data.sha256() != digest:
        raise UserError(f"--resume: the data are not the run's (rows: {rows:,} then, {len(plan.data.train):,} now)")


def begin(plan: Plan, folder: RunFolder, resume: bool | str) -> Path | None:
    """The newest complete checkpoint of a run that goes on, or None; keeps in `folder` what a resume asks for.

    With `auto` a run begins anew where no checkpoint is complete; otherwise that is a UserError.
    """
    checkpoint = folder.newest_complete() if resume else None
    if resume is True and checkpoint is None:
        raise UserError(f"--resume: {folder} has no complete checkpoint; start anew without --resume")
    run = {
        "rows": len(plan.data.train),
        "data_sha256": plan.data.sha256(),
        "processes": plan.args.world_size,
        "placebo": plan.settings.options.placebo,
    }
    folder.record(plan.settings.as_yaml(), source(), run | versions())
    return checkpoint


def _check_same_settings(settings: Settings, folder: RunFolder) -> None:
    """Refuse to go on with settings that change what is trained; raises UserError with old and new values."""
    old = flat(folder.settings()) | {"--placebo": folder.is_placebo()}
    new = flat(settings.sections()) | {"--placebo": settings.options.placebo}
    differ = [key for key in sorted(old | new) if old.get(key) != new.get(key) and not key.startswith(MAY_DIFFER)]
    if not differ:
        return
    changes = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in differ)
    remedy = f"with its own it goes on: --config {quote(str(folder.settings_file))} --resume"
    if folder.is_placebo():
        remedy += " --placebo"
    if LENGTH.issuperset(differ):
        remedy += "; a run keeps its length: when it is done, it prints the command that goes on from its model"
    raise UserError(f"--resume: other settings than the run's: {changes}; {remedy}")
