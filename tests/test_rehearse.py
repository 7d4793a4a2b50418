"""--rehearse measures the run that would follow, and changes nothing of it. Real runs of the tiny policy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, refused
from transformers.integrations import TensorBoardCallback

import rewards
import train_grpo
from harness import rehearse
from harness.exits import RunError, UserError
from harness.footprint import moved_share
from harness.rehearse import figures_file
from harness.settings import read_settings


def history(folder: Path) -> list[dict]:
    return [log for log in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "loss" in log]


def test_a_rehearsal_samples_as_the_run_will_and_changes_nothing(tiny, tmp_path, capsys):
    train_grpo.main([*tiny, "--training.output_dir", str(tmp_path / "before")])
    capsys.readouterr()
    train_grpo.main([*tiny, "--rehearse", "--keep", "--price", "2.5"])
    said = capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("run*")] == ["run-rehearsal.json"]  # output_dir is left alone
    for words in ("emoji_reward: ", "of groups; the best of a group", "best, ", "worst, ", "GB calculated", "an hour"):
        assert words in said, words
    figures = json.loads((tmp_path / "run-rehearsal.json").read_text())
    assert figures["steps"] == 4 and 0 < figures["hours"][0] <= figures["hours"][1]
    train_grpo.main(tiny)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "before/model.safetensors").read_bytes()
    first = history(tmp_path / "run")[0]
    keys = [key for key in first if key.startswith(("reward", "completions/"))]
    assert len(keys) > 10 and {key: figures["signal"]["first_step"][key] for key in keys} == {
        key: first[key] for key in keys
    }


def test_the_worst_case_is_at_full_length(tiny, tmp_path):
    train_grpo.main([*tiny, "--rehearse", "--keep", "--training.max_completion_length", "48"])
    figures = json.loads((tmp_path / "run-rehearsal.json").read_text())
    assert figures["worst_step_s"] > figures["typical_step_s"] > 0
    assert 0 < figures["worst_sampling_s"] < figures["worst_step_s"]
    assert figures["worst_length"] == 48 > figures["signal"]["first_step"]["completions/mean_length"]


def test_flat_rewards_are_named(tiny, capsys):
    train_grpo.main([*tiny, "--rehearse", "--rewards.emoji_reward.max_emoji", "0"])
    said = capsys.readouterr().out
    assert "emoji_reward: 0 (std 0), all alike in 100% of groups" in said and "next to nothing" in said


def test_a_reward_that_applies_to_some_groups_only_is_measured_by_these(tiny, tmp_path, monkeypatch):
    def sometimes(completions, prompts, max_emoji: int = 4, **kwargs):
        first = prompts[0][-1]["content"]
        return [i if prompt[-1]["content"] == first else None for i, prompt in enumerate(prompts)]

    monkeypatch.setattr(rewards, "emoji_reward", sometimes)
    train_grpo.main([*tiny, "--rehearse", "--keep"])
    found = json.loads((tmp_path / "run-rehearsal.json").read_text())["signal"]["rewards"]["emoji_reward"]
    assert (found["mean"], found["climb"]) == (1.5, 1.5) and 0 < found["flat"] < 1  # 0, 1, 2, 3 in its groups


LIMITED = """
import resource, sys
sys.path.insert(0, {root!r})
import train_grpo
from harness.exits import exit_status
from trl import GRPOTrainer
train = GRPOTrainer.train
def limited(self, *args, **kwargs):  # from here on, 200 MB more than the process has
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 200 * 2**20,) * 2)
    return train(self, *args, **kwargs)
GRPOTrainer.train = limited
sys.exit(exit_status(train_grpo.main))
"""


def test_too_little_memory_is_a_result(tiny, tmp_path):
    big = ["--training.per_device_train_batch_size", "512", "--training.max_completion_length", "200", "--rehearse"]
    big += ["--samples.held_out", "0"]
    command = [sys.executable, "-c", LIMITED.format(root=str(ROOT)), *tiny, *big]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: rehearsal: out of memory (")
    assert "halve training.per_device_train_batch_size" in result.stderr and not (tmp_path / "run").exists()


def test_fit_tries_micro_batches_and_prints_what_to_lay_over(tiny, tmp_path):
    sizes = ["--training.steps_per_generation", "null", "--training.gradient_accumulation_steps", "2"]
    sizes += ["--training.per_device_train_batch_size", "4"]
    command = [sys.executable, "train_grpo.py", *tiny, *sizes, "--rehearse", "--fit"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    tried = [line for line in result.stdout.splitlines() if " s a step, " in line]
    assert [line.split(":")[0] for line in tried] == ["1 x 8", "2 x 4", "4 x 2", "8 x 1"]
    overlay = tmp_path / "fit.yaml"
    overlay.write_text(result.stdout[result.stdout.index("training:") :])
    training = read_settings([*tiny, *sizes, "--config", str(overlay)]).training
    assert training["gradient_accumulation_steps"] * training["per_device_train_batch_size"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.dtype", "bfloat16", "--training.learning_rate", "1e-6"], "a step moves 1% of the weights"),
        (["--config", "recipes/lora.yaml", "--training.learning_rate", "1e-6"], "LoRA needs more: recipes/lora.yaml"),
        (["--training.beta", "0", "--training.sync_ref_model", "true"], "sync_ref_model has no reference model"),
        ([], None),
    ],
    ids=["bfloat16", "lora", "reference", "the demo"],
)
def test_check_warns_of_settings_that_cannot_learn(arguments, words, tiny, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    train_grpo.main([*tiny, *arguments, "--check"])
    plan = " ".join(capsys.readouterr().out.split())
    assert ("warning: " in plan and words in plan) if words else "warning" not in plan


def test_the_share_of_weights_that_a_step_moves():
    """As benchmarks/bfloat16.py measures it with AdamW: 2.0% at 1e-6, 15.5% at 1e-5, of N(0, 0.02)."""
    weights = [torch.randn(10**6, generator=torch.Generator().manual_seed(0)) * 0.02]
    assert moved_share(weights, 1e-6) > 0.99
    halved = [weight.bfloat16() for weight in weights]
    assert [moved_share(halved, rate) for rate in (1e-6, 1e-5)] == pytest.approx([0.020, 0.155], abs=0.002)


def test_where_figures_are_kept():
    settings = read_settings(["--training.output_dir", "outputs/mine/"])
    assert figures_file(settings) == Path("outputs/mine-rehearsal.json")


def test_rehearsal_options_alone_are_refused(tiny):
    assert "--fit: goes with --rehearse" in refused([*tiny, "--fit"])


def test_two_processes_report_once(tiny, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "train_grpo.py", *tiny]
    command += ["--training.ddp_backend", "gloo", "--training.per_device_train_batch_size", "4", "--rehearse", "--keep"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Worst case: ") == 1 and [path.name for path in tmp_path.glob("run*")] == [
        "run-rehearsal.json"
    ]


def test_a_rehearsal_tells_no_tracker_and_goes_alone(tiny, monkeypatch):
    called = []
    monkeypatch.setattr(TensorBoardCallback, "on_train_begin", lambda *args, **kwargs: called.append(args))
    train_grpo.main([*tiny, "--training.report_to", "tensorboard", "--rehearse"])
    assert not called
    for other in ("--check", "--resume"):
        assert refused([*tiny, "--rehearse", other]).startswith("--rehearse: is a run of its own")


@pytest.mark.parametrize("words", ["the memory of a goldfish", "out of memory"])
def test_only_a_lack_of_memory_is_one(words, tiny, monkeypatch):
    def raises(*_):
        raise RuntimeError(words)

    monkeypatch.setattr(rehearse, "_signal", raises)
    with pytest.raises(UserError if "out" in words else RunError):
        train_grpo.main([*tiny, "--rehearse"])
