"""Several processes of one run, started by harness.launch: one line and one status for all; what is stopped goes on."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, refused, tiny_arguments, weights
from filelock import FileLock
from forked import Forked, two
from safetensors.torch import load_file
from test_faults import LOW_BIT, STEPS
from transformers import AutoModelForCausalLM

import harness.tools.launch
import train_grpo
from harness.during.stop import SIGNALS, stop
from harness.errors import UserError
from harness.files import fault
from harness.run_folder import RunFolder

SHARDED = ["fsdp2", "zero3"]


def launched(folder: Path, script: str, *arguments: str) -> Forked:
    """harness.tools.launch with two processes of a script on this CPU."""
    return Forked(["--num_processes", "2", *script.split(), *arguments], folder, program="launch")


def stubs(folder: Path, *what: str) -> Forked:
    """harness.tools.launch with two processes that end as `what` says; returned when both have begun."""
    launcher = launched(folder, "tests/stub_worker.py", str(folder), *what)
    launcher.wait_for(lambda: all((folder / rank).exists() and (folder / rank).read_text() for rank in "01"))
    return launcher


def alive(folder: Path) -> list[int]:
    return [pid for pid in (int((folder / rank).read_text()) for rank in "01") if psutil.pid_exists(pid)]


def ended(process: Forked, status: int) -> str:
    """Its last line on stderr, once it has ended as it should."""
    assert process.wait() == status, process.err
    assert "Traceback" not in process.err
    return (process.err or process.out).splitlines()[-1]


def both_ended(processes: list[Forked], *statuses: int) -> None:
    assert tuple(process.wait() for process in processes) == statuses, [process.err for process in processes]


def last_line(folder: Path, rank: int) -> str:
    """What one of `two` has left for its launcher."""
    return json.loads((folder / f"{rank}.json").read_text())["line"]


def done(run: Path, step: int) -> None:
    status = RunFolder(run).status()
    assert status.pop("time") and status.pop("verdict")["line"]
    assert status == {"status": "done", "exit_status": 0, "step": step}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, policy) -> Path:
    """Two processes' run of STEPS."""
    folder = tmp_path_factory.mktemp("two")
    both_ended(processes := two([*tiny_arguments(policy, folder), *STEPS], folder), 0, 0)
    done(folder / "run", 6)
    plan = "4 prompts x 4 = 16 completions"
    assert [plan in process.out for process in processes] == [True, False]  # of both, once
    rows = RunFolder(folder / "run").samples()
    assert len(rows) == 3 + 64 and all(row["before"] and row["after"] for row in rows)
    return folder / "run"


def goes_on_exactly(tiny: list[str], folder: Path, uninterrupted: Path) -> None:
    both_ended(two([*tiny, *STEPS, "--resume"], folder / "resumed"), 0, 0)
    assert weights(folder / "run") == weights(uninterrupted)


# By what the two stubs do: the launcher's status and its only line
ENDS = {
    "mistake": (2, "error: prompts.column: there is no qeury; did you mean query?"),
    "lost@0 raises@1": (1, "error: poison in process 1"),
    "waits@0 killed@1": (1, "error: process 1 was killed by SIGKILL; the same command with --resume goes on from"),
}


def test_the_launcher_ends_all_processes_with_the_line_and_the_status_of_the_first(tmp_path):
    for what, (status, words) in ENDS.items():
        folder = tmp_path / what.replace(" ", "-")
        line = ended(launcher := stubs(folder, *what.split()), status)
        assert line.startswith(words) and launcher.err.count("error: ") == 1, (what, launcher.err)
        assert not alive(folder), what


def test_a_signal_is_handed_on_and_waited_for_and_a_second_one_leaves_no_process_behind(tmp_path):
    launcher = stubs(tmp_path / "waits", "waits")
    launcher.send_signal(signal.SIGUSR1)
    assert ended(launcher, 138) == "stopped by SIGUSR1: checkpoint-2 is complete"
    assert len(list(tmp_path.glob("waits/*.saved"))) == 2 and not alive(tmp_path / "waits")
    launcher = stubs(tmp_path / "hangs", "hangs")
    launcher.send_signal(signal.SIGTERM)
    time.sleep(4)  # sooner it counts as the same signal
    assert launcher.poll() is None and len(alive(tmp_path / "hangs")) == 2
    launcher.send_signal(signal.SIGTERM)
    assert ended(launcher, 143).startswith("stopped by SIGTERM: the same command with --resume")
    assert not alive(tmp_path / "hangs")


def test_a_killed_launcher_leaves_no_process_behind(tmp_path):
    launcher = stubs(tmp_path, "waits")
    processes = [psutil.Process(pid) for pid in alive(tmp_path)]
    launcher.send_signal(signal.SIGKILL)
    assert len(processes) == 2 and not psutil.wait_procs(processes, timeout=60)[1]
    assert len(list(tmp_path.glob("*.saved"))) == 2


def test_a_mistake_in_the_launchers_own_arguments(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(stop, "listen", lambda *_: None)
    mistakes = {
        "--num_processes 0 train_grpo.py": "--num_processes 0: starts nothing",
        "--num_processes 2 nope.py": "nope.py: there is no such script",
        "--config_file nope.yaml --num_processes 2 train_grpo.py": "launch: The passed configuration file",
    }
    for arguments, words in mistakes.items():
        with pytest.raises(UserError, match=f"^{words}"):
            harness.tools.launch.main(arguments.split())
    logging.disable(logging.NOTSET)


def test_a_folder_in_use_is_refused_by_both_and_left_alone(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/_lock_holder").write_text("process 7 on another machine")
    with FileLock(tmp_path / "run/_lock"):
        both_ended(two(tiny, tmp_path / "second"), 2, 2)
    for rank in (0, 1):
        assert "in use by another run (process 7 on another machine)" in last_line(tmp_path / "second", rank)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"_lock", "_lock_holder"}  # no error.log, no status


def test_a_reward_that_raises_in_one_process_is_the_runs_failure(tiny, tmp_path):
    first, second = two([*tiny, *STEPS], tmp_path / "ends", "raise:4@1")
    both_ended([first, second], 1, 1)
    assert "rewards.length_reward: raised ValueError: poison on row 0 of the batch" in last_line(tmp_path / "ends", 1)
    assert "RewardError" in (tmp_path / "run/error.log").read_text()
    assert RunFolder(tmp_path / "run").status()["exit_status"] == 1


def test_a_signal_to_one_process_stops_both_after_the_same_step(tiny, tmp_path, uninterrupted):
    both_ended(two([*tiny, *STEPS], tmp_path / "ends", "usr1:backward@1"), 138, 138)
    newest = RunFolder(tmp_path / "run").newest_complete()
    assert all(f"{newest.name} is complete" in last_line(tmp_path / "ends", rank) for rank in (0, 1))
    goes_on_exactly(tiny, tmp_path, uninterrupted)


def test_a_run_of_which_one_process_was_killed_in_a_save_goes_on(tiny, tmp_path, uninterrupted):
    first, second = two([*tiny, *STEPS], tmp_path / "ends", "kill:3@1")
    assert second.wait() == -signal.SIGKILL and first.wait() == 1, first.err
    goes_on_exactly(tiny, tmp_path, uninterrupted)


def test_a_signal_to_launcher_and_process_saves_and_loses_nothing(tiny, tmp_path, uninterrupted):
    line = ended(launched(tmp_path, "tests/break_it.py spread:generate", *tiny, *STEPS), 143)
    newest = RunFolder(tmp_path / "run").newest_complete()
    assert fault(newest) is None and f"{newest.name} is complete" in line
    status = RunFolder(tmp_path / "run").status()
    assert (status["status"], status["exit_status"]) == ("stopped", 143)
    goes_on_exactly(tiny, tmp_path, uninterrupted)


def test_another_number_of_processes_is_refused_and_a_run_that_is_done_is_not_repeated(tiny, tmp_path, uninterrupted):
    shutil.copytree(uninterrupted, tmp_path / "run")
    message = refused([*tiny, *STEPS, "--resume"])
    assert message.startswith("--resume: number of processes 2 -> 1; go on with python -m harness launch")
    with pytest.raises(SystemExit) as done:
        train_grpo.main([*tiny, *STEPS, "--resume", "auto"])
    assert done.value.code is None
    longer = refused([*tiny, *STEPS, "--resume", "auto", "--training.num_train_epochs", "9"])
    assert "training.num_train_epochs" in longer


def test_replicas_that_round_by_chance_stay_the_same_and_go_on_exactly(tiny, tmp_path):
    low_bit = [*LOW_BIT.split(), "--placebo", "--training.max_steps", "5", "--training.save_steps", "3"]
    ended = []
    for more in ([], ["--resume"]):
        both_ended(two([*tiny, *low_bit, *more], tmp_path / f"ends{more}", "weights:uncompiled"), 0, 0)
        ended += [torch.load(tmp_path / "run" / f"{rank}.pt") for rank in (0, 1)]
        shutil.rmtree(tmp_path / "run/checkpoint-5")
    whole, *others = ended
    for other in others:
        assert all(torch.equal(*pair) for pair in zip(whole, other, strict=True))


def test_variables_of_a_group_that_is_not_there_are_named(tiny, tmp_path):
    for variable in ("WORLD_SIZE=4", "OMPI_COMM_WORLD_SIZE=4", "PMI_SIZE=4", "LOCAL_RANK=0", "RANK=3"):
        for more in ([], ["--check"]):
            process = Forked([*tiny, *more], tmp_path / f"{variable}{more}", environment=dict([variable.split("=")]))
            assert ended(process, 2).startswith(f"error: {variable}: ")


def test_a_process_whose_others_never_come_says_so_and_ends_by_any_signal(tiny, tmp_path):
    for number in SIGNALS:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        process = Forked(tiny, tmp_path / str(number), environment=group)
        process.wait_for(lambda port=port: socket.socket().connect_ex(("127.0.0.1", port)) == 0)  # it listens for them
        process.send_signal(number)
        assert process.wait() == -number, process.err
        assert "RANK=0" in process.err and "waiting for 2 processes" in process.err
    check = Forked([*tiny, "--check"], tmp_path / "check", environment=group)  # waits for nobody
    assert check.wait() == 0 and "in each of 2 processes" in check.out and "waiting" not in check.err


def test_the_slurm_script_saves_queues_itself_again_and_goes_on(tiny, tmp_path):
    """srun and scontrol are stand-ins; the script, the signal and the run are real."""
    stand_ins = {"srun": 'exec "$@"', "scontrol": f'echo "$@" >> {tmp_path}/requeued', "failing": "exit 1"}
    for name, does in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2"}
    slurm["PYTHON"] = sys.executable
    script = ["bash", "examples/slurm/one_node.sbatch", *tiny, "--training.max_steps", "30"]
    job = subprocess.Popen(script, cwd=ROOT, env=os.environ | slurm)
    while not RunFolder(tmp_path / "run").status().get("step"):
        assert job.poll() is None
        time.sleep(0.1)
    (launcher,) = psutil.Process(job.pid).children()
    launcher.send_signal(signal.SIGUSR1)
    assert job.wait() == 138 and (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert subprocess.run(script, cwd=ROOT, env=os.environ | slurm).returncode == 0
    done(tmp_path / "run", 30)
    # A job that has failed is not queued again; nor one that is done, which has ended with 0 as here.
    slurm["PYTHON"] = str(tmp_path / "failing")
    assert subprocess.run(script, cwd=ROOT, env=os.environ | slurm).returncode == 1
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def two_of(engine: str) -> list[str]:
    start = [sys.executable, "-m", "harness", "launch", "--num_processes", "2"]
    return [*start, "--config_file", f"recipes/launch/{engine}.yaml"]


def sharded(engine: str, *arguments: str, script: str = "train_grpo.py", status: int = 0) -> str:
    """The last line of two processes that divide a model; accelerate is patched to allow that on a CPU."""
    paths = f"{ROOT}/tests/shards_on_cpu:{ROOT}/.venv/deepspeed"  # the latter is that of `make faults`
    command = [*two_of(engine), *script.split(), *arguments]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert ran.returncode == status and "Traceback" not in ran.stderr, ran.stderr
    return (ran.stderr or ran.stdout).splitlines()[-1]


@pytest.mark.sweep
@pytest.mark.parametrize("engine", SHARDED)
def test_a_divided_model_learns_the_same_and_goes_on(tiny, tmp_path, policy, engine, uninterrupted):
    sharded(engine, *tiny_arguments(policy, tmp_path / "whole"), *STEPS)
    sharded(engine, *tiny, *STEPS, script="tests/break_it.py spread:backward", status=143)
    sharded(engine, *tiny, *STEPS, "--resume")
    folders = uninterrupted, tmp_path / "whole/run", tmp_path / "run"
    ddp, whole, parts = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert all(torch.allclose(ddp[key], whole[key], atol=1e-3) for key in ddp)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").num_parameters() > 10**6


@pytest.mark.sweep
@pytest.mark.parametrize("engine", SHARDED)
def test_a_divided_model_learns_in_bfloat16_with_lora_and_what_overflows_is_not_saved(tiny, tmp_path, engine):
    lora = ["--lora.r", "8", "--lora.target_modules", "all-linear", "--training.learning_rate", "1e-3"]
    sharded(engine, *tiny, *lora, "--model.dtype", "bfloat16", "--training.bf16", "true")
    assert load_file(tmp_path / "run/adapter_model.safetensors")
    tiny += ["--training.output_dir", str(tmp_path / "huge")]
    huge = ["--training.learning_rate", "1e39", "--training.max_grad_norm", "0", "--training.save_steps", "1"]
    assert "weights are no longer finite" in sharded(engine, *tiny, *huge, status=1)
    assert not list((tmp_path / "huge").glob("checkpoint-*"))


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["ddp", *SHARDED])
def test_two_gpus(tiny, tmp_path, engine):
    cuda = ["--training.use_cpu", "false", "--training.bf16", "true"]
    stopped = subprocess.run([*two_of(engine), "tests/break_it.py", "sigterm:backward@1", *tiny, *cuda], cwd=ROOT)
    assert stopped.returncode == 143
    subprocess.run([*two_of(engine), "train_grpo.py", *tiny, *cuda, "--resume"], cwd=ROOT, check=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").num_parameters() > 10**6
