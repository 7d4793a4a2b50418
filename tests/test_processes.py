"""Several processes of one run, started by harness.launch: one line and one status for all; what is stopped goes on."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, refused, tiny_arguments
from safetensors.torch import load_file
from test_faults import STEPS, weights
from transformers import AutoModelForCausalLM

import harness.launch
import train_grpo
from harness.checkpoints import fault, newest_complete
from harness.exits import UserError

SHARDED = ["fsdp2", "zero3"]


def command(*arguments: str, script: str = "train_grpo.py", engine: str = "ddp") -> list[str]:
    config = [] if engine == "ddp" else ["--config_file", f"recipes/launch/{engine}.yaml"]
    return [sys.executable, "-m", "harness.launch", *config, "--num_processes", "2", *script.split(), *arguments]


def launch(*arguments: str, **more) -> subprocess.Popen:
    """Two processes on this CPU; accelerate is patched to allow FSDP2 and ZeRO-3 there."""
    paths = f"{ROOT}/tests/shards_on_cpu:{ROOT}/.venv/deepspeed"  # the latter is `make test`'s
    environment = {**os.environ, "PYTHONPATH": paths} if "engine" in more else None
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*arguments, **more), cwd=ROOT, env=environment, **pipes)


def ended(process: subprocess.Popen, status: int) -> str:
    """Its last line on stderr, once it has ended as it should."""
    out, err = process.communicate()
    assert process.returncode == status, err
    assert "Traceback" not in err
    return err.splitlines()[-1] if err else out.splitlines()[-1]


def state(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, policy) -> Path:
    """Two processes' run of STEPS."""
    folder = tmp_path_factory.mktemp("two")
    ended(launch(*tiny_arguments(policy, folder), *STEPS), 0)
    assert state(folder / "run") == {"status": "done", "exit_status": 0, "step": 6}
    return folder / "run"


def test_a_mistake_is_reported_once_with_status_2(tiny, tmp_path):
    launched = launch(*tiny, "--prompts.column", "qeury")
    _, err = launched.communicate()
    assert launched.returncode == 2
    assert err.count("error:") == 1 and "did you mean query?" in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num_processes", "0", "train_grpo.py"], "--num_processes 0: starts nothing"),
        (["--num_processes", "2", "nope.py"], "nope.py: there is no such script"),
        (
            ["--config_file", "nope.yaml", "--num_processes", "2", "train_grpo.py"],
            "launch: The passed configuration file",
        ),
    ],
)
def test_a_mistake_in_the_launchers_own_arguments(arguments, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr("harness.launch.take_signals", lambda *_: None)
    with pytest.raises(UserError, match=f"^{words}"):
        harness.launch.main(arguments)
    logging.disable(logging.NOTSET)


def test_a_folder_in_use_is_refused_and_left_alone(tiny, tmp_path):
    first = launch(*tiny, "--training.max_steps", "4000", "--training.save_strategy", "no")  # until it is stopped
    while not (tmp_path / "run/status.json").exists():
        assert first.poll() is None
        time.sleep(0.1)
    assert "in use by another run" in ended(launch(*tiny), 2)
    assert not (tmp_path / "run/error.log").exists() and state(tmp_path / "run")["status"] == "running"
    first.send_signal(signal.SIGTERM)
    ended(first, 143)


def test_a_reward_that_raises_in_one_process_ends_both_with_its_own_line(tiny, tmp_path):
    line = ended(launch(*tiny, *STEPS, script="tests/break_it.py raise:4@1"), 1)
    assert line.startswith("error: rewards.length_reward: raised ValueError: poison on row 0 of the batch")
    assert "RewardError" in (tmp_path / "run/error.log").read_text()
    assert state(tmp_path / "run")["exit_status"] == 1


@pytest.mark.parametrize(("script", "status"), [("spread:generate", 143), ("usr1:backward@1", 138)])
def test_a_stop_in_any_way_saves_and_loses_nothing(tiny, tmp_path, uninterrupted, script, status):
    line = ended(launch(*tiny, *STEPS, script=f"tests/break_it.py {script}"), status)
    newest = newest_complete(str(tmp_path / "run"))
    assert fault(newest) is None and f"{newest.name} is complete" in line
    assert state(tmp_path / "run")["status"] == "stopped" and state(tmp_path / "run")["exit_status"] == status
    ended(launch(*tiny, *STEPS, "--resume", "auto"), 0)
    assert weights(tmp_path / "run") == weights(uninterrupted)


def test_a_killed_process_ends_the_other_and_the_run_goes_on(tiny, tmp_path, uninterrupted):
    line = ended(launch(*tiny, *STEPS, script="tests/break_it.py kill:3@1"), 1)
    assert line.startswith("error: process 1 was killed by SIGKILL")
    ended(launch(*tiny, *STEPS, "--resume"), 0)
    assert weights(tmp_path / "run") == weights(uninterrupted)


def test_a_killed_launcher_leaves_no_process_behind_and_the_run_goes_on(tiny, tmp_path, uninterrupted):
    launched = launch(*tiny, *STEPS, script="tests/break_it.py slow:2")
    while not (tmp_path / "run/status.json").exists() or not state(tmp_path / "run").get("step"):
        assert launched.poll() is None
        time.sleep(0.1)
    children = psutil.Process(launched.pid).children(recursive=True)
    launched.kill()
    assert len(children) == 2 and not psutil.wait_procs(children, timeout=60)[1]
    assert state(tmp_path / "run")["status"] == "stopped"
    ended(launch(*tiny, *STEPS, "--resume"), 0)
    assert weights(tmp_path / "run") == weights(uninterrupted)


def test_a_full_disk_is_reported_once_and_the_run_goes_on(tiny, tmp_path, uninterrupted):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=100m tmpfs {disk} && "$@"; status=$?; cp -r {disk}/run {tmp_path}; exit $status'
    full = command(*tiny, *STEPS, "--training.output_dir", str(disk / "run"), script="tests/break_it.py fill:8@0")
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *full]
    assert "the disk is full" in ended(subprocess.Popen(own_mounts, cwd=ROOT, stderr=subprocess.PIPE, text=True), 1)
    ended(launch(*tiny, *STEPS, "--resume"), 0)
    assert weights(tmp_path / "run") == weights(uninterrupted)


def test_a_second_signal_leaves_no_process_behind(tiny, tmp_path):
    launched = launch(*tiny, script="tests/break_it.py slow:60")
    while not (tmp_path / "run/status.json").exists():
        assert launched.poll() is None
        time.sleep(0.1)
    children = psutil.Process(launched.pid).children(recursive=True)
    time.sleep(5)  # into the first step
    launched.send_signal(signal.SIGTERM)
    time.sleep(4)
    assert launched.poll() is None
    launched.send_signal(signal.SIGTERM)
    assert ended(launched, 143).startswith("stopped by SIGTERM: the same command with --resume goes on from the newest")
    assert len(children) == 2 and not any(child.is_running() for child in children)


def test_another_number_of_processes_is_refused_and_a_run_that_is_done_is_not_repeated(tiny, tmp_path, uninterrupted):
    shutil.copytree(uninterrupted, tmp_path / "run")
    message = refused([*tiny, *STEPS, "--resume"])
    assert message.startswith("--resume: number of processes 2 -> 1, completions a step 16 -> 8; go on with python -m")
    assert message.endswith("start a new run with --training.gradient_accumulation_steps 2, which keeps them")
    with pytest.raises(SystemExit) as done:
        train_grpo.main([*tiny, *STEPS, "--resume", "auto"])
    assert done.value.code is None
    longer = refused([*tiny, *STEPS, "--resume", "auto", "--training.num_train_epochs", "9"])
    assert "training.num_train_epochs" in longer


def test_the_slurm_script_saves_queues_itself_again_and_goes_on(tiny, tmp_path):
    """srun and scontrol are stand-ins; the script, the signal and the run are real."""
    stand_ins = {"srun": 'exec "$@"', "scontrol": f'echo "$@" >> {tmp_path}/requeued'}
    for name, does in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2"}
    slurm["PYTHON"] = sys.executable
    script = ["bash", "examples/slurm/one_node.sbatch", *tiny, "--training.max_steps", "30"]
    job = subprocess.Popen(script, cwd=ROOT, env=os.environ | slurm)
    while not (tmp_path / "run/status.json").exists() or not state(tmp_path / "run").get("step"):
        assert job.poll() is None
        time.sleep(0.1)
    (launcher,) = psutil.Process(job.pid).children()
    launcher.send_signal(signal.SIGUSR1)
    assert job.wait() == 138 and (tmp_path / "requeued").read_text() == "requeue 7\n"
    for _ in range(2):  # it goes on; and, once it is done, it does nothing
        assert subprocess.run(script, cwd=ROOT, env=os.environ | slurm).returncode == 0
        assert state(tmp_path / "run") == {"status": "done", "exit_status": 0, "step": 30}


@pytest.mark.parametrize("engine", SHARDED)
def test_a_divided_model_learns_the_same_and_goes_on(tiny, tmp_path, policy, engine, uninterrupted):
    ended(launch(*tiny_arguments(policy, tmp_path / "whole"), *STEPS, engine=engine), 0)
    ended(launch(*tiny, *STEPS, engine=engine, script="tests/break_it.py spread:backward"), 143)
    ended(launch(*tiny, *STEPS, "--resume", engine=engine), 0)
    ddp, whole, parts = (
        load_file(folder / "model.safetensors") for folder in (uninterrupted, tmp_path / "whole/run", tmp_path / "run")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert all(torch.allclose(ddp[key], whole[key], atol=1e-3) for key in ddp)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").num_parameters() > 10**6


@pytest.mark.parametrize("engine", SHARDED)
def test_a_divided_model_in_bfloat16_with_lora(tiny, tmp_path, engine):
    lora = ["--lora.r", "8", "--lora.target_modules", "all-linear", "--training.learning_rate", "1e-3"]
    ended(launch(*tiny, *lora, "--model.dtype", "bfloat16", "--training.bf16", "true", engine=engine), 0)
    assert load_file(tmp_path / "run/adapter_model.safetensors")


@pytest.mark.parametrize("engine", SHARDED)
def test_divided_weights_that_overflow_are_not_saved(tiny, tmp_path, engine):
    huge = ["--training.learning_rate", "1e39", "--training.max_grad_norm", "0", "--training.save_steps", "1"]
    assert "weights are no longer finite" in ended(launch(*tiny, *huge, engine=engine), 1)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["ddp", *SHARDED])
def test_two_gpus(tiny, tmp_path, engine):
    cuda = ["--training.use_cpu", "false", "--training.bf16", "true"]
    command = [sys.executable, "-m", "harness.launch", "--config_file", f"recipes/launch/{engine}.yaml"]
    command += ["--num_processes", "2"]
    stopped = subprocess.run([*command, "tests/break_it.py", "sigterm:backward@1", *tiny, *cuda], cwd=ROOT)
    assert stopped.returncode == 143
    subprocess.run([*command, "train_grpo.py", *tiny, *cuda, "--resume"], cwd=ROOT, check=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").num_parameters() > 10**6
