"""--rehearse measures the run that would follow, and changes nothing of it. Real runs of the tiny policy."""

import json
import resource
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, refused
from transformers.integrations import TensorBoardCallback
from trl import GRPOTrainer

import rewards
import train_grpo
from harness.before import rehearse
from harness.before.footprint import moved_share
from harness.before.rehearse import figures_file
from harness.errors import RunError, UserError
from harness.settings import read_settings


def history(folder: Path) -> list[dict]:
    return [log for log in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "loss" in log]


def test_a_rehearsal_samples_as_the_run_will_and_changes_nothing(tiny, tmp_path, monkeypatch, capsys):
    called, begin = [], TensorBoardCallback.on_train_begin
    monkeypatch.setattr(TensorBoardCallback, "on_train_begin", lambda *a, **k: called.append(a) or begin(*a, **k))
    long = [*tiny, "--training.max_completion_length", "48", "--samples.held_out", "0"]
    train_grpo.main([*long, "--training.output_dir", str(tmp_path / "before")])
    capsys.readouterr()
    train_grpo.main([*long, "--rehearse", "--keep", "--price", "2.5", "--training.report_to", "tensorboard"])
    said, bars = capsys.readouterr()
    assert not called  # it tells no tracker
    assert "Rehearsal, 1 of 2: " in bars and "Rehearsal, 2 of 2: " in bars and bars.count("Loading weights: 100%") == 1
    assert [path.name for path in tmp_path.glob("run*")] == ["run-rehearsal.json"]  # output_dir is left alone
    for words in (
        "emoji_reward: ",
        "of groups; the best of a group",
        "best answer, ",
        "worst answer, ",
        "GB calculated",
        "an hour",
        "minutes on this CPU",
    ):
        assert words in said, words
    figures = json.loads((tmp_path / "run-rehearsal.json").read_text())
    assert figures["steps"] == 4 and 0 < figures["hours"][0] <= figures["hours"][1]
    assert 0 < figures["worst_sampling_s"] < figures["worst_step_s"]
    assert figures["worst_length"] == 48 > figures["signal"]["first_step"]["completions/mean_length"]
    train_grpo.main([*long, "--training.report_to", "tensorboard"])
    assert called
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "before/model.safetensors").read_bytes()
    first = history(tmp_path / "run")[0]
    keys = [key for key in first if key.startswith(("reward", "completions/"))]
    assert len(keys) > 10 and {key: figures["signal"]["first_step"][key] for key in keys} == {
        key: first[key] for key in keys
    }


def test_a_reward_that_is_flat_or_applies_to_some_groups_only(tiny, tmp_path, monkeypatch, capsys):
    def sometimes(completions, prompts, max_emoji: int = 4, **kwargs):
        first = prompts[0][-1]["content"]
        return [i if prompt[-1]["content"] == first else None for i, prompt in enumerate(prompts)]

    monkeypatch.setattr(rewards, "emoji_reward", sometimes)
    train_grpo.main([*tiny, "--rehearse", "--keep", "--rewards.length_reward.alpha", "0"])
    found = json.loads((tmp_path / "run-rehearsal.json").read_text())["signal"]["rewards"]["emoji_reward"]
    assert (found["mean"], found["climb"]) == (1.5, 1.5) and found["flat"] == 0  # 0, 1, 2, 3 in its groups
    said = capsys.readouterr().out.splitlines()
    (line,) = (line for line in said if line.startswith("  length_reward: "))
    assert "length_reward: 1 (std 0), all alike in 100% of groups" in line and "next to nothing" in line


def test_hours_in_words():
    rows = {
        (0.033, 0.14): "2 to 8.4 minutes",
        (0.5, 2): "30 minutes to 2.0 hours",
        (2.04, 1200): "2.0 to 1,200.0 hours",
    }
    assert {hours: rehearse._between(*hours) for hours in rows} == rows


def test_too_little_memory_is_a_result(tiny, tmp_path, monkeypatch):
    train, before = GRPOTrainer.train, resource.getrlimit(resource.RLIMIT_AS)

    def limited(self, *args, **kwargs):  # from here on, 200 MB more than the process has
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 200 * 2**20, before[1]))
        return train(self, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "train", limited)
    big = ["--training.per_device_train_batch_size", "512", "--training.max_completion_length", "200"]
    try:
        with pytest.raises(UserError) as error:
            train_grpo.main([*tiny, *big, "--rehearse", "--samples.held_out", "0"])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert str(error.value).startswith("rehearsal: out of memory (")
    assert "halve training.per_device_train_batch_size" in str(error.value) and not (tmp_path / "run").exists()


def test_fit_tries_micro_batches_and_prints_what_to_lay_over(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "train_grpo.py")])  # which it starts for each of them
    sizes = ["--training.steps_per_generation", "null", "--training.gradient_accumulation_steps", "2"]
    sizes += ["--training.per_device_train_batch_size", "1", "--training.num_generations", "2"]
    train_grpo.main([*tiny, *sizes, "--rehearse", "--fit"])
    said = capsys.readouterr().out
    tried = [line for line in said.splitlines() if " s a step, " in line]
    assert [line.split(":")[0] for line in tried] == ["1 x 2", "2 x 1"]
    overlay = tmp_path / "fit.yaml"
    overlay.write_text(said[said.index("training:") :])
    # Over the demo's 64 x 1, in a file: what the command line says would win.
    training = read_settings(["--config", str(ROOT / "demo/config.yaml"), "--config", str(overlay)]).training
    assert training["gradient_accumulation_steps"] * training["per_device_train_batch_size"] == 2


def test_check_warns_of_settings_that_cannot_learn(tiny, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    lora = ["--config", "recipes/lora.yaml", "--training.learning_rate", "1e-6"]
    rows = [
        (["--model.dtype", "bfloat16", "--training.learning_rate", "1e-6"], "a step moves 1% of the weights"),
        (lora, "LoRA needs more: recipes/lora.yaml"),
        ([], None),  # the demo's own
    ]
    wrong = []
    for arguments, words in rows:
        train_grpo.main([*tiny, *arguments, "--check"])
        plan = " ".join(capsys.readouterr().out.split())
        if not ("warning: " in plan and words in plan if words else "warning" not in plan):
            wrong.append((arguments, plan))
    assert wrong == []


def test_the_share_of_weights_that_a_step_moves():
    """As benchmarks/bfloat16.py measures it with AdamW: 2.0% at 1e-6, 15.5% at 1e-5, of N(0, 0.02)."""
    weights = [torch.randn(10**6, generator=torch.Generator().manual_seed(0)) * 0.02]
    assert moved_share(weights, 1e-6) > 0.99
    halved = [weight.bfloat16() for weight in weights]
    assert [moved_share(halved, rate) for rate in (1e-6, 1e-5)] == pytest.approx([0.020, 0.155], abs=0.002)


def test_where_figures_are_kept():
    settings = read_settings(["--training.output_dir", "outputs/mine/"])
    assert figures_file(settings) == Path("outputs/mine-rehearsal.json")


def test_options_that_do_not_go_together_are_refused(tiny):
    rows = [
        (["--fit"], "--fit: goes with --rehearse"),
        (["--rehearse", "--check"], "--rehearse: is a run of its own"),
        (["--rehearse", "--resume"], "--rehearse: is a run of its own"),
    ]
    found = [refused([*tiny, *options]) for options, _ in rows]
    assert [(row[0], said) for row, said in zip(rows, found, strict=True) if row[1] not in said] == []


def test_only_a_lack_of_memory_is_one(tiny, monkeypatch):
    cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"
    for words, kind in (("the memory of a goldfish", RunError), ("out of memory", UserError), (cublas, UserError)):

        def raises(*_, words=words):
            raise RuntimeError(words)

        monkeypatch.setattr(rehearse, "_what_rewards_teach", raises)
        with pytest.raises(kind, match=words):
            train_grpo.main([*tiny, "--rehearse"])
