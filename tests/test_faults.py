"""Signals, a full disk, poison and a second run, each in a real process; what it leaves is then resumed here."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, tiny_arguments

import train_grpo
from harness.checkpoints import fault, newest_complete
from harness.exits import RunError, UserError

# 6 steps of one micro-batch. A generation batch feeds two of them twice over: saves fall inside it.
STEPS = ["--training.max_steps", "6", "--training.save_steps", "2", "--training.num_iterations", "2"]


def broken(what: str, arguments: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "tests/break_it.py", what, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, policy) -> bytes:
    """The final weights of the run of STEPS."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train_grpo.main([*tiny_arguments(policy, folder), *STEPS])
    return weights(folder / "run")


@pytest.mark.parametrize("phase", ["generate", "reward", "backward", "save"])
def test_sigterm_in_any_phase_saves_and_loses_nothing(tiny, tmp_path, uninterrupted, phase):
    stopped = broken(f"sigterm:{phase}", [*tiny, *STEPS])
    assert stopped.returncode == 143
    assert "stopped by SIGTERM: checkpoint-" in stopped.stderr and "--resume" in stopped.stderr
    run = tmp_path / "run"
    newest = max(run.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert fault(newest) is None and newest.name in stopped.stderr
    assert not (run / "model.safetensors").exists() and "**Unfinished" in (run / "README.md").read_text()
    train_grpo.main([*tiny, *STEPS, "--resume"])
    assert weights(run) == uninterrupted


def test_ctrl_c_from_outside_exits_130(tiny, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "train_grpo.py", *tiny, "--training.max_steps", "400"], cwd=ROOT, stderr=subprocess.PIPE
    )
    while not (tmp_path / "run/reward_curves.png").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130 and b"stopped by SIGINT: checkpoint-" in process.stderr.read()
    assert fault(newest_complete(str(tmp_path / "run"))) is None


def test_a_second_signal_stops_at_once(tiny, tmp_path):
    stopped = broken("twice:reward", [*tiny, "--training.save_steps", "1"])
    assert stopped.returncode == -signal.SIGTERM and "once more stops at once" in stopped.stderr
    # The first generation batch fed two steps; the signals fell into the third.
    assert newest_complete(str(tmp_path / "run")).name == "checkpoint-2"


def test_a_loss_of_nan_is_not_stepped_on(tiny, tmp_path, uninterrupted):
    stopped = broken("nan:4", [*tiny, *STEPS])
    assert stopped.returncode == 1
    assert stopped.stderr.splitlines()[-1].startswith("error: step 4: the loss is nan, the gradient norm nan")
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    train_grpo.main([*tiny, *STEPS, "--resume"])
    assert weights(tmp_path / "run") == uninterrupted


def test_weights_that_overflow_are_not_saved(tiny, tmp_path):
    with pytest.raises(RunError, match="weights are no longer finite, and were not saved"):
        train_grpo.main([*tiny, "--training.learning_rate", "1e39", "--training.save_steps", "1"])
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def small_disk(megabytes: int, command: list[str]) -> subprocess.CompletedProcess:
    """Run `command` where the folder `$DISK` is a file system of its own."""
    script = (
        f'mount -t tmpfs -o size={megabytes}m tmpfs "$0" && cd "{ROOT}" && "$@"; status=$?; ls -R "$0"; exit $status'
    )
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, *command]


def test_a_second_run_into_the_folder_is_refused(tiny, tmp_path):
    first = subprocess.Popen([sys.executable, "train_grpo.py", *tiny, "--training.max_steps", "400"], cwd=ROOT)
    while not (tmp_path / "run/_lock").exists():
        assert first.poll() is None
        time.sleep(0.02)
    with pytest.raises(UserError, match=f"in use by another run .process {first.pid} on "):
        train_grpo.main(tiny)
    first.kill()
    first.wait()
    train_grpo.main(tiny)  # a dead process's lock is none
