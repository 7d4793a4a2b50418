"""Resume: whether a run goes on, from which checkpoint, and with nothing that would change what it trains."""

import sys
from pathlib import Path
from shlex import quote

from harness.before.plan import Plan
from harness.errors import UserError, in_short
from harness.rewards_file import source
from harness.run_folder import RunFolder, difference, flat
from harness.settings import Settings, versions

# What may differ between a run and its continuation; everything else changes what is trained, even how often it is
# evaluated, as that uses up random numbers of the training.
MAY_DIFFER = ("samples", "training.output_dir", "training.run_name", "training.report_to", "training.disable_tqdm")
MAY_DIFFER += ("training.logging_", "training.log_", "training.save_", "training.hub_", "training.push_to_hub")
LONGER = ("training.max_steps", "training.num_train_epochs")


def whether_to_resume(settings: Settings, folder: RunFolder) -> bool | str:
    """What --resume comes to, once the settings are the run's; raises UserError where they are not.

    `auto` is False where there is no checkpoint, and ends the program where the run is done.
    """
    resume = settings.options.resume
    if resume == "auto" and settings.training.get("save_only_model"):
        problem = "its checkpoints cannot be gone on with, so that --resume auto would start anew each time"
        raise settings.error("training.save_only_model", f"{problem}; set it to false")
    if resume == "auto" and not folder.checkpoints() and folder.status().get("status") != "done":
        return False
    if resume and not folder.settings_file.exists():
        raise UserError(f"--resume: {folder} holds no run to resume (no config.yaml); leave --resume out")
    if resume:
        check_same_settings(settings, folder)
    if resume == "auto" and folder.status().get("status") == "done":
        print(f"{folder}: this run is done")
        sys.exit()
    return resume


def check_same_settings(settings: Settings, folder: RunFolder) -> None:
    """Refuse to go on with settings that change what is trained; raises UserError with old and new values."""
    old, new = flat(folder.settings()), flat(settings.sections())
    differ = [key for key in sorted(old | new) if old.get(key) != new.get(key) and not key.startswith(MAY_DIFFER)]
    if not differ:
        return
    changes = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in differ)
    more = {key: (new.get(key) or 0) - (old.get(key) or 0) for key in differ if key in LONGER}
    if len(more) == len(differ) and min(more.values()) > 0:
        raise UserError(
            f"--resume: {changes}: a run is not made longer; once it is done, start another from it: "
            f"--config {quote(str(folder.settings_file))} --model.pretrained_model_name_or_path {quote(str(folder))} "
            f"--training.output_dir {quote(f'{folder}-more')}{''.join(f' --{key} {n}' for key, n in more.items())}"
        )
    raise UserError(f"--resume: other settings than the run's: {changes}; put them back, or start a new run")


def check_same_run(plan: Plan, folder: RunFolder) -> None:
    """Refuse to go on with another rewards.py, other rows or another number of processes; raises UserError."""
    args, data = plan.args, plan.data
    try:
        run, old = folder.run(), folder.rewards_file.read_text(encoding="utf-8")
        rows, digest, then, was = (run[key] for key in ("rows", "data_sha256", "processes", "step_completions"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"its run.json or rewards.py is missing or damaged ({in_short(error)}); start a new run"
        raise UserError(f"{folder}: {problem}") from error
    if then != args.world_size:
        now = plan.completions_a_step
        how = f"python -m harness launch --num_processes {then} train_grpo.py" if then > 1 else "python train_grpo.py"
        equal = args.gradient_accumulation_steps * was / now
        new = f" with --training.gradient_accumulation_steps {equal:g}, which keeps them" if equal.is_integer() else ""
        raise UserError(
            f"--resume: number of processes {then} -> {args.world_size}, completions a step {was} -> {now}; go on with "
            f"{how}, or start a new run{new}"
        )
    if old != source():
        back = f"put it back with: cp {quote(str(folder.rewards_file))} rewards.py, or start a new run"
        raise UserError(f"--resume: rewards.py is not the run's: {difference(old, source())}; {back}")
    if data.sha256() != digest:
        counts = f"{rows:,} rows then, {len(data.train):,} now"
        raise UserError(f"--resume: the data are not the run's ({counts}); put them back, or start a new run")


def record(plan: Plan, folder: RunFolder) -> None:
    """Keep in `folder` what check_same_run asks for, the rewards' titles for pictures, and the versions."""
    run = {"rows": len(plan.data.train), "data_sha256": plan.data.sha256(), "processes": plan.args.world_size}
    run |= {"step_completions": plan.completions_a_step, "titles": {r.logged: r.title for r in plan.rewards}}
    folder.record(plan.settings.as_yaml(), source(), run | versions())


def starting_checkpoint(folder: RunFolder, resume: bool | str) -> Path | None:
    """The newest complete checkpoint, where a run is to go on; with `auto` None, and the run starts anew, if none is.

    Otherwise raises UserError.
    """
    if not resume:
        return None
    tried = len(folder.checkpoints())
    newest = folder.newest_complete()
    if newest or resume == "auto":
        return newest
    if not tried:
        raise UserError(f"--resume: the run in {folder} had saved no checkpoint yet; run it again without --resume")
    raise UserError(
        f"training.output_dir: {folder} has no complete checkpoint ({tried} tried) to resume from; "
        "start anew without --resume in another folder"
    )


def note_other_rewards(files: list[Path]) -> None:
    """Say so where one of the --config files is a run's own and today's rewards.py is not that run's."""
    for file in files:
        theirs = file.with_name("rewards.py")
        if theirs.exists() and (old := theirs.read_text(encoding="utf-8")) != source():
            print(f"warning: rewards.py is not the one that {file} was run with: {difference(old, source())}")
