"""A checkpoint counts only whole, resuming goes on as if nothing had happened, and with other settings is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import REWARDS, dies_in_step, refused, weights

import train_grpo
from harness.during.checkpoints import Checkpoints
from harness.errors import RunError
from harness.files import fault, seal
from harness.run_folder import RunFolder


def logs(folder, key="loss") -> dict[int, float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {log["step"]: log[key] for log in history if key in log}


def test_other_rewards_or_data_or_a_damaged_record_refuse_to_resume(interrupted, tmp_path):
    changed = REWARDS.read_text(encoding="utf-8").replace("float(min(", "-float(min(")
    (tmp_path / "mine.py").write_text(changed, encoding="utf-8")
    message = refused([*interrupted, "--resume", "--rewards_file", str(tmp_path / "mine.py")])
    assert "mine.py is not the run's: -    return [float(min(" in message and "| +    return [-float(min(" in message
    file = tmp_path / "run/run.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"data_sha256": "0" * 64, "rows": 226}))
    assert "226 then, 227 now" in refused([*interrupted, "--resume"])
    file.write_text("{}")
    assert "missing or damaged" in refused([*interrupted, "--check", "--resume"])
    file.write_text(json.dumps(record))
    (tmp_path / "run/rewards.py").unlink()
    assert "missing or damaged" in refused([*interrupted, "--resume"])


# What upstream, or we, once resumed inexactly or not at all
OFTEN = "--training.eval_on_start=true --training.eval_strategy=steps --training.eval_steps=3 --samples.held_out=4"
REFERENCE = "--training.sync_ref_model=true --training.ref_model_sync_steps=1 --training.ref_model_mixup_alpha=0.5"
EXACT = {
    "in order, 2nd epoch": "--placebo --training.shuffle_dataset=false --prompts.limit=12 --training.logging_steps=2",
    "a reference that follows": f"{REFERENCE} --training.beta=0.5 --training.per_device_eval_batch_size=4 {OFTEN}",
}


@pytest.mark.parametrize("settings", EXACT.values(), ids=EXACT)
def test_resumed_exactly(settings, tiny, tmp_path):
    arguments = [*tiny, "--training.max_steps", "8", "--training.save_steps", "3", *settings.split()]
    dies_in_step(5, arguments)
    train_grpo.main([*arguments, "--resume"])
    train_grpo.main([*arguments, "--training.output_dir", str(tmp_path / "whole")])
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert logs(tmp_path / "run") == logs(tmp_path / "whole")
    assert logs(tmp_path / "run", "eval_reward") == logs(tmp_path / "whole", "eval_reward")


def test_resume_keeps_the_before_side_and_what_was_warned_of_and_saves_as_it_is_told_to(interrupted, tmp_path, capfd):
    folder = RunFolder(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoint-4")
    rows = folder.samples()
    assert all(row["before"] and row["after"] is None for row in rows)
    rows[0]["before"]["completion"] = "kept, not made again"
    folder.write_samples(rows)
    free = ["--samples.questions", "[富士山の高さは?, 新しい質問は?]"]  # do not matter
    train_grpo.main([*interrupted, "--resume", *free, "--training.save_steps", "5", "--training.logging_steps", "4"])
    rows = folder.samples()
    assert rows[0]["before"]["completion"] == "kept, not made again" and all(row["after"] for row in rows)
    assert [row["question"] for row in rows if not row["before"]] == ["新しい質問は?"]
    assert "step 1: seen before the kill" in folder.card.read_text(encoding="utf-8")
    assert {log["step"] for log in folder.state()["log_history"] if "loss" in log} == {1, 2, 4, 5, 6}  # each save logs
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-5", "checkpoint-6"]
    out, err = capfd.readouterr()
    assert "resumed from checkpoint-2, step 2 of 6" in out and " 2/6 [" in err


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "manifest.json"]
DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "deleted": lambda path: path.unlink(),
}


def test_every_damage_to_every_file_is_found_and_the_older_checkpoint_used(interrupted, tmp_path, capsys):
    for damage in DAMAGES.values():
        for name in FILES:
            copy = tmp_path / "copy"
            shutil.copytree(tmp_path / "run", copy)
            damage(copy / "checkpoint-4" / name)
            assert RunFolder(copy).newest_complete().name == "checkpoint-2", (damage, name)
            said = capsys.readouterr().out
            assert "checkpoint-4 is not used" in said and (name in said or name == "manifest.json"), (damage, said)
            assert (copy / "_set-aside-1-checkpoint-4").is_dir() and not (copy / "checkpoint-4").exists()
            shutil.rmtree(copy)


def test_without_a_complete_checkpoint_there_is_nothing_to_resume(interrupted, tmp_path):
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").unlink()
    assert "no complete checkpoint" in refused([*interrupted, "--resume"])
    assert not list((tmp_path / "run").glob("checkpoint-*"))  # they have been set aside
    assert "start anew without --resume" in refused([*interrupted, "--resume"])
    assert "no run to resume" in refused([*interrupted, "--training.output_dir", str(tmp_path / "none"), "--resume"])


def test_settings_that_change_the_training_or_are_damaged_refuse_to_resume(interrupted, tmp_path):
    changed = {
        "--training.learning_rate=1e-3": "training.learning_rate 0.0006 -> 0.001",
        "--rewards.emoji_reward.max_emoji=2": "rewards.emoji_reward.max_emoji 4 -> 2",
        "--training.max_steps=7": "training.max_steps 6 -> 7",
        "--lora.r=4": "lora.r None -> 4",
        "--placebo": "--placebo False -> True",
    }
    message = refused([*interrupted, "--resume", *changed])
    assert [words for words in changed.values() if words not in message] == []
    train_grpo.main([*message.split("goes on: ")[1].split(), "--check"])
    (tmp_path / "run/config.yaml").write_bytes(b"\xff\xfe")
    assert "config.yaml: missing or damaged" in refused([*interrupted, "--resume"])
    none_to_resume = ["--training.save_only_model", "true", "--resume", "auto"]
    assert refused([*interrupted, *none_to_resume]).startswith("training.save_only_model: ")


def test_rotation_keeps_the_newest_sealed_ones(tiny, tmp_path, monkeypatch):
    """When a checkpoint is deleted, two later ones are sealed; a third may be in the writing."""
    delete, sealed = shutil.rmtree, []

    def deletes(path, *args, **kwargs):
        others = [folder for folder in (tmp_path / "run").glob("checkpoint-*") if folder != path]
        if Path(path).name.startswith("checkpoint-"):
            sealed.append([fault(folder) for folder in others].count(None))
        return delete(path, *args, **kwargs)

    monkeypatch.setattr("harness.during.checkpoints.shutil.rmtree", deletes)
    train_grpo.main([*tiny, "--training.save_steps", "1", "--training.save_total_limit", "2"])
    assert sealed == [2, 2]
    kept = [(path.name, fault(path)) for path in RunFolder(tmp_path / "run").checkpoints()]
    assert kept == [("checkpoint-3", None), ("checkpoint-4", None)]


class Bomb(str):
    """What unpickling would run: a folder is made."""

    def __reduce__(self):
        return os.mkdir, (str(self),)


def test_resuming_never_executes_what_a_checkpoint_carries(interrupted, tmp_path):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "generation_batch_0.pt"):
        shutil.copytree(tmp_path / "run", copy := tmp_path / name)
        torch.save(Bomb(tmp_path / "executed"), copy / "checkpoint-4" / name)
        seal(copy / "checkpoint-4")  # by somebody who knows of manifests
        with pytest.raises(RunError, match="[Ww]eights.only"):
            train_grpo.main([*interrupted, "--resume", "--training.output_dir", str(copy)])
        assert not (tmp_path / "executed").exists(), name


def test_the_best_checkpoint_is_kept_also_where_its_folder_is_named_in_another_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (1, 2, 3):
        (tmp_path / f"run/checkpoint-{step}").mkdir(parents=True)
    checkpoints = Checkpoints(None, RunFolder(tmp_path / "run"), None)
    checkpoints.limit = 1
    checkpoints._seal(3, "run/checkpoint-1")  # as before a resume with the absolute path
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-1", "checkpoint-3"]
