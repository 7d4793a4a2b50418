"""A checkpoint counts only whole, and resuming goes on as if nothing had happened. Real runs on the tiny policy."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import refused, tiny_arguments
from trl import GRPOTrainer

import train_grpo
from harness.during.checkpoints import Checkpoints
from harness.during.watch import Watch
from harness.errors import RunError, UserError
from harness.files import fault, seal
from harness.run_folder import RunFolder

STEPS = ["--training.max_steps", "6", "--training.save_steps", "2"]


@pytest.fixture(scope="module")
def dead(policy, tmp_path_factory):
    """The folder of a run of STEPS, saved at 2 and 4, that died in step 5; tests use copies of it."""
    folder = tmp_path_factory.mktemp("dead")
    step = GRPOTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 3:
            watch = next(c for c in self.callback_handler.callbacks if isinstance(c, Watch))
            watch.warn(self.state, "cause", "seen before the kill")
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "training_step", dies)
        with pytest.raises(KeyboardInterrupt):
            train_grpo.main([*tiny_arguments(policy, folder), *STEPS])
    while not (folder / "run/checkpoint-4/manifest.json").exists():  # sealed beside the training
        time.sleep(0.01)
    return folder / "run"


@pytest.fixture
def interrupted(dead, tiny, tmp_path):
    """Arguments of the copy in tmp_path, which differ in its place only."""
    shutil.copytree(dead, tmp_path / "run")
    return [*tiny, *STEPS]


def test_resume_keeps_the_before_side_and_what_was_warned_of(interrupted, tmp_path):
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "samples.jsonl").open()]
    rows[0]["before"]["completion"] = "kept, not made again"
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    free = ["--training.logging_steps", "2", "--samples.questions", "[富士山の高さは?, 新しい質問は?]"]  # do not matter
    train_grpo.main([*interrupted, "--resume", *free])
    after = [json.loads(line) for line in (run / "samples.jsonl").open()]
    assert after[0]["before"]["completion"] == "kept, not made again" and all(row["after"] for row in after)
    assert [row["question"] for row in after if not row["before"]] == ["新しい質問は?"]
    assert "step 3: seen before the kill" in (run / "README.md").read_text(encoding="utf-8")


def test_a_resumed_run_saves_and_logs_as_often_as_it_is_told_to(interrupted, tmp_path, capfd):
    shutil.rmtree(tmp_path / "run/checkpoint-4")
    train_grpo.main([*interrupted, "--resume", "--training.save_steps", "5", "--training.logging_steps", "4"])
    state = RunFolder(tmp_path / "run").state()
    assert {log["step"] for log in state["log_history"] if "loss" in log} == {1, 2, 4, 5, 6}  # each save logs
    assert [path.name for path in RunFolder(tmp_path / "run").checkpoints()] == [f"checkpoint-{n}" for n in (5, 6)]
    assert "trainer_state.json" not in capfd.readouterr().err  # upstream says that they are the checkpoint's


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "manifest.json"]
DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "deleted": lambda path: path.unlink(),
    "replaced": lambda path: path.write_text("[]"),
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


def test_no_complete_checkpoint_and_none_at_all_are_errors_not_a_fresh_start(interrupted, tmp_path):
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
        "--lora.r=4": "lora.r None -> 4",
        "--training.eval_strategy=epoch": "training.eval_strategy None -> 'epoch'",
    }
    message = refused([*interrupted, "--resume", *changed])
    assert [words for words in changed.values() if words not in message] == []
    for content in (b"", b"\xff\xfe", b"[1]", b"a: [", b"7"):
        (tmp_path / "run/config.yaml").write_bytes(content)
        assert "config.yaml: damaged" in refused([*interrupted, "--resume"]), content


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


def test_loading_a_policy_never_executes_what_it_carries(tiny, policy, tmp_path):
    pickled, coded = tmp_path / "pickled", tmp_path / "coded"
    for folder in (pickled, coded):
        shutil.copytree(policy, folder)
    (pickled / "model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "executed"), pickled / "pytorch_model.bin")
    config = json.loads((coded / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n")
    for folder in (pickled, coded):
        with pytest.raises((UserError, RunError)):
            train_grpo.main([*tiny, "--model.pretrained_model_name_or_path", str(folder)])
        assert not (tmp_path / "executed").exists(), folder


def test_the_best_checkpoint_is_kept_also_where_its_folder_is_named_in_another_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (1, 2, 3):
        (tmp_path / f"run/checkpoint-{step}").mkdir(parents=True)
    checkpoints = Checkpoints(None, RunFolder(tmp_path / "run"), None)
    checkpoints.limit = 1
    checkpoints._seal(3, "run/checkpoint-1")  # as before a resume with the absolute path
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-1", "checkpoint-3"]
