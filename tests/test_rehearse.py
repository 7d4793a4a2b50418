"""--rehearse measures the run that would follow, and changes nothing of it. Real runs of the tiny policy."""

import json
import re
import resource
import tempfile
from pathlib import Path

import pytest
from conftest import refused
from transformers.integrations import TensorBoardCallback
from trl import GRPOTrainer

import rewards
import train_grpo
from harness.errors import RunError, UserError
from harness.tools import rehearse


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """Where a rehearsal has its folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def test_a_rehearsal_samples_as_the_run_will_and_changes_nothing(tiny, tmp_path, kept, monkeypatch, capsys):
    trackers, clocks = [], []
    begin, clocked = TensorBoardCallback.on_train_begin, rehearse._clocked
    monkeypatch.setattr(TensorBoardCallback, "on_train_begin", lambda *a, **k: trackers.append(a) or begin(*a, **k))
    monkeypatch.setattr(rehearse, "_clocked", lambda *a: clocks.append(clocked(*a)) or clocks[-1])
    long = [*tiny, "--training.max_completion_length", "48", "--samples.held_out", "0"]
    long += ["--training.report_to", "tensorboard", "--training.logging_strategy", "epoch"]
    train_grpo.main([*long, "--training.output_dir", str(tmp_path / "before"), "--training.logging_strategy", "steps"])
    trackers.clear()
    capsys.readouterr()
    train_grpo.main([*long, "--rehearse", "--price", "2.5"])
    said, bars = capsys.readouterr()
    assert trackers == [] and list(kept.iterdir()) == [] and not (tmp_path / "run").exists()
    assert "Rehearsal, 1 of 2: " in bars and "Rehearsal, 2 of 2: " in bars
    assert re.search("best answer, .*\n  median answer, .*\n  worst answer, ", said), said
    assert re.search(r"The run: 4 steps in 0:\S+ to 0:\S+ .*, 0\.\d\d to 0\.\d\d dollars at 2.5 per", said), said
    usual, worst = clocks
    assert 0 < sum(worst.sampling) < sum(worst.seconds) and min(worst.memory) > 0
    assert {log["completions/mean_length"] for log in worst.logs if "completions/mean_length" in log} == {48}
    train_grpo.main([*long, "--training.logging_strategy", "steps"])
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "before/model.safetensors").read_bytes()
    first = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"][0]
    keys = [key for key in first if key.startswith(("reward", "completions/"))]
    assert len(keys) > 10 and [usual.logs[0][key] for key in keys] == [first[key] for key in keys]


def test_a_reward_that_is_flat_or_applies_to_some_groups_only(tiny, kept, monkeypatch, capsys):
    def sometimes(completions, prompts, max_emoji: int = 4, **kwargs):
        return [i if prompt[-1]["content"] == prompts[0][-1]["content"] else None for i, prompt in enumerate(prompts)]

    monkeypatch.setattr(rewards, "emoji_reward", sometimes)
    monkeypatch.setattr(rewards, "answer_reward", lambda completions, answer: [len(str(c)) > 40 for c in completions])
    train_grpo.main([*tiny, "--rehearse", "--rewards.length_reward.alpha", "0"])
    said = capsys.readouterr().out
    assert re.search("emoji_reward: 1.5 .std 1.1., None for ..%, zero reward variance in 0%", said)  # of 0 to 3
    assert re.search("cheats: answer_reward pays '.*' to every question", said)
    assert re.search("length_reward: 1 .std 0., zero reward variance in 100% of the groups; .*: bad", said)


def test_too_little_memory_is_a_result_and_leaves_nothing(tiny, tmp_path, kept, monkeypatch):
    train, before = GRPOTrainer.train, resource.getrlimit(resource.RLIMIT_AS)

    def limited(self, *args, **kwargs):  # from here on, 200 MB more than the process has
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 200 * 2**20, before[1]))
        return train(self, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "train", limited)
    big = ["--training.per_device_train_batch_size", "512", "--training.max_completion_length", "200"]
    try:
        message = refused([*tiny, *big, "--rehearse", "--samples.held_out", "0"])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert message.startswith("rehearsal: out of memory (") and "per_device_train_batch_size" in message
    assert list(kept.iterdir()) == [] and not (tmp_path / "run").exists()


def test_only_a_lack_of_memory_is_one(tiny, kept, monkeypatch):
    cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"
    for words, kind in (("out of memory", UserError), (cublas, UserError), ("the memory of a goldfish", RunError)):

        def raises(*_, words=words):
            raise RuntimeError(words)

        monkeypatch.setattr(rehearse, "_usual_steps", raises)
        with pytest.raises(kind, match=words):
            train_grpo.main([*tiny, "--rehearse"])
    (folder,) = kept.iterdir()  # of the last one
    assert "goldfish" in (folder / "error.log").read_text()
