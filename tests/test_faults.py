"""Signals, a full disk, poison and a second run, each in a real process; what it leaves is then resumed."""

import os
import pty
import shutil
import signal
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SIX_STEPS, refused, tiny_arguments, weights
from forked import Forked
from huggingface_hub import HfApi
from trl import GRPOTrainer

import train_grpo
from harness.during import stop as stopping
from harness.errors import RunError, Stopped
from harness.files import fault
from harness.run_folder import RunFolder

# 6 steps of one micro-batch. A generation batch feeds two of them twice over: saves fall inside it.
STEPS = [*SIX_STEPS, "--training.num_iterations", "2"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, policy) -> bytes:
    """The final weights of the run of STEPS."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train_grpo.main([*tiny_arguments(policy, folder), *STEPS])
    return weights(folder / "run")


# The exit status, the newest checkpoint that is left, and what is said last. SIGUSR1 is Slurm's warning; a signal that
# comes twice at once was handed on by a launcher. At the second save the disk has 8 MB left, and a checkpoint needs 13.
FAULTS = {
    "sigterm:generate": (143, 5, "stopped by SIGTERM: checkpoint-5 is complete; the same command with --resume"),
    "doubled:reward": (143, 5, "stopped by SIGTERM: checkpoint-5 "),
    "usr1:backward": (128 + signal.SIGUSR1, 2, "stopped by SIGUSR1: checkpoint-2 "),
    "sigterm:save": (143, 4, "stopped by SIGTERM: checkpoint-4 "),
    "children:3": (130, 1, "stopped by SIGINT: checkpoint-1 "),  # of a reward, and Ctrl-C reaches them too
    "nan:4": (1, 2, "error: step 4: the gradient norm is nan"),
    "fill:8": (1, 2, "the disk is full"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_in_any_phase_loses_nothing(tiny, tmp_path, uninterrupted, what):
    (status, step, words), run, arguments, disk = FAULTS[what], tmp_path / "run", [*tiny, *STEPS], ""
    if what.startswith("fill"):
        (disk := tmp_path / "disk").mkdir()
        arguments += ["--training.output_dir", str(disk / "run")]
    stopped = Forked(arguments, tmp_path, what, disk=disk)
    assert stopped.wait() == status and words in stopped.err.splitlines()[-1], stopped.err
    if disk:  # what stays is copied off it
        (tmp_path / "disk-copy/run").rename(run)
    newest = RunFolder(run).checkpoints()[-1]
    assert newest.name == f"checkpoint-{step}" and fault(newest) is None
    assert not (run / "model.safetensors").exists() and "**Unfinished" in RunFolder(run).card.read_text()
    train_grpo.main([*tiny, *STEPS, "--resume"])
    assert weights(run) == uninterrupted


# micro-batches a generation batch, of an optimizer step, passes over a generation batch; 3 and 2 share no boundary
SHAPES = [(2, 1, 2), (4, 2, 1), (3, 2, 1), (1, 2, 1)]


def stop_at(step: int, monkeypatch) -> None:
    """SIGTERM in the last micro-batch of an optimizer step."""
    take = GRPOTrainer.training_step

    def stops(self, *args, **kwargs):
        if self.state.global_step + 1 == step and self.accelerator.sync_gradients:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "training_step", stops)


def stopped_and_resumed(policy: str, folder: Path, shape: tuple, stops: list[int], monkeypatch, *more: str) -> bytes:
    """The final weights of 9 steps, which are two epochs or more, stopped by SIGTERM in each step of `stops`."""
    batches, accumulated, passes = shape
    arguments = [*tiny_arguments(policy, folder), "--training.max_steps", "9", "--training.save_steps", "100"]
    arguments += ["--training.per_device_train_batch_size", "4", "--training.num_iterations", str(passes)]
    arguments += ["--training.steps_per_generation", str(batches), "--samples.held_out", "0"]
    arguments += [f"--training.gradient_accumulation_steps={accumulated}", f"--prompts.limit={2 * batches}", *more]
    for stop in stops:
        with monkeypatch.context() as patch, pytest.raises(Stopped, match=f"checkpoint-{stop} is complete"):
            stop_at(stop, patch)
            train_grpo.main(arguments)
        if "--resume" not in arguments:
            arguments.append("--resume")
    train_grpo.main(arguments)
    assert not (folder / "run/checkpoint-10").exists()  # a tenth step, at a learning rate of 0, moves no weight
    return weights(folder / "run")


EVALUATED = ["--samples.held_out", "1", "--training.per_device_eval_batch_size", "4", "--training.eval_strategy"]
BEST = ["steps", "--training.eval_steps=1", "--training.save_strategy=best", "--training.metric_for_best_model=reward"]
LOW_BIT = "--model.dtype=bfloat16 --training.optim=adamw_torch_8bit --training.optim_args=bf16_stochastic_round=True"
STOPS = {  # the steps that a run is stopped in
    "later epochs, and the end": ([], [3, 8, 9]),
    "epochs that end with an evaluation": ([*EVALUATED, "epoch"], [4, 6, 8]),  # of four steps each
    "the best checkpoint only": ([*EVALUATED, *BEST], [3]),
    "rounded by chance": (LOW_BIT.split(), [3, 8]),  # torchao compiles its step for each shape, a minute in all
}
MARKED = [pytest.param(name, marks=pytest.mark.sweep if name == "rounded by chance" else ()) for name in STOPS]


@pytest.mark.parametrize("name", MARKED)
def test_stops_change_nothing(policy, tmp_path, monkeypatch, name):
    more, stops = STOPS[name]
    whole = stopped_and_resumed(policy, tmp_path / "whole", SHAPES[0], [], monkeypatch, *more)
    assert stopped_and_resumed(policy, tmp_path / "parts", SHAPES[0], stops, monkeypatch, *more) == whole
    histories = [RunFolder(tmp_path / half / "run").state()["log_history"] for half in ("whole", "parts")]
    evaluated = [[log["step"] for log in history if "eval_reward" in log] for history in histories]
    assert evaluated[0] == evaluated[1] and bool(evaluated[0]) == ("samples" in str(more))


def test_resume_auto_after_a_first_save_that_was_killed_begins_as_a_run_does(policy, tmp_path, monkeypatch):
    more = [*EVALUATED, "steps", "--training.eval_steps", "100", "--training.eval_on_start", "true"]
    whole = stopped_and_resumed(policy, tmp_path / "whole", SHAPES[0], [], monkeypatch, *more)
    (half_written := tmp_path / "parts/run/checkpoint-1").mkdir(parents=True)
    for name in ("config.yaml", "rewards.py", "run.json"):
        shutil.copy(tmp_path / "whole/run" / name, half_written.parent)
    parts = stopped_and_resumed(policy, tmp_path / "parts", SHAPES[0], [], monkeypatch, *more, "--resume", "auto")
    history = RunFolder(tmp_path / "parts/run").state()["log_history"]
    assert parts == whole and "eval_reward" in history[0] and history[0]["step"] == 0


def test_a_signal_whose_exception_was_dropped_before_training_stops_it(tiny, tmp_path, monkeypatch):
    """Python drops what is raised in a weakref's callback, and a signal's handler may run there."""
    monkeypatch.setattr(stopping.stop, "number", signal.SIGTERM)
    with pytest.raises(Stopped, match="checkpoint-1 is complete"):
        train_grpo.main(tiny)


def uploading(monkeypatch, lost: tuple[int, ...] = ()) -> list[Path]:
    """Arguments of a run that uploads, and the folders that it uploads; those numbered in `lost` are cut off."""
    uploads: list[Path] = []

    def upload(self, folder_path, run_as_future=False, **_):
        uploads.append(Path(folder_path))
        done = Future()
        done.set_exception(ConnectionError("cut off")) if len(uploads) in lost else done.set_result(None)
        return done if run_as_future else done.result()

    monkeypatch.setattr(HfApi, "whoami", lambda self: {"name": "me"})
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/run"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return uploads


PUSH = ["--training.push_to_hub=true", "--training.hub_model_id=me/run", "--training.hub_always_push=true"]


@pytest.mark.draws
def test_a_lost_upload_costs_nothing_and_none_finds_half_a_file(tiny, tmp_path, monkeypatch):
    """Half a card is refused by the Hub, and a file that is gone before it is read ends an upload."""
    replace, written, run = Path.replace, {}, tmp_path / "run"
    monkeypatch.setattr(Path, "replace", lambda self, path: written.update({path: self.name}) or replace(self, path))
    uploads = uploading(monkeypatch, lost=(1, 3))
    with pytest.raises(RunError, match=f"ConnectionError.*hf upload me/run {run} --exclude"):
        train_grpo.main([*tiny, *PUSH, "--training.save_steps", "2"])
    assert len(uploads) == 3  # of checkpoints the first two
    assert weights(run) and fault(RunFolder(run).newest_complete()) is None
    assert "Unfinished" not in RunFolder(run).card.read_text()
    ours = {"README.md", "reward_curves.png", "samples.jsonl", "status.json", "config.yaml", "rewards.py", "run.json"}
    assert ours <= {path.name for path in written if path.parent == run}
    assert all(name.startswith("_") for name in written.values())


def test_a_stop_where_an_epoch_ends_saves_once_and_uploads_nothing(tiny, tmp_path, monkeypatch):
    saves, save, uploads = [], GRPOTrainer._save_checkpoint, uploading(monkeypatch)
    monkeypatch.setattr(GRPOTrainer, "_save_checkpoint", lambda self, *args: (saves.append(args), save(self, *args)))
    stop_at(2, monkeypatch)
    epoch_of_two_steps = ["--prompts.limit", "4", "--samples.held_out", "0", "--training.save_strategy", "epoch"]
    with pytest.raises(Stopped, match="checkpoint-2 is complete"):
        train_grpo.main([*tiny, *PUSH, *epoch_of_two_steps])
    assert len(saves) == 1 and fault(RunFolder(tmp_path / "run").newest_complete()) is None
    assert not uploads


@pytest.mark.sweep
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stopped_at_every_step_the_weights_are_the_uninterrupted_runs(policy, tmp_path, monkeypatch, shape):
    whole = stopped_and_resumed(policy, tmp_path / "whole", shape, [], monkeypatch)
    for stop in range(1, 10):
        assert stopped_and_resumed(policy, tmp_path / str(stop), shape, [stop], monkeypatch) == whole, stop


@pytest.mark.sweep
def test_killed_after_each_file_of_a_save(tiny, tmp_path, uninterrupted):
    """`_save_checkpoint` and the sealing write some 12 files; the first save, at step 2, stays whole each time."""
    whole = set()
    for files in range(1, 14):
        run = tmp_path / "run"
        killed = Forked([*tiny, *STEPS], tmp_path, f"kill:{files}")
        status = killed.wait()
        whole.add(newest := RunFolder(run).newest_complete().name)
        if status == 0:  # no save has so many files
            break
        assert status == -signal.SIGKILL, killed.err
        aside = {path.name for path in run.glob("_set-aside*")}
        assert newest == "checkpoint-4" or aside == {"_set-aside-1-checkpoint-4"}, (files, newest, aside)
        if files in (1, 8):
            train_grpo.main([*tiny, *STEPS, "--resume"])
            assert weights(run) == uninterrupted
        shutil.rmtree(run)
    assert files > 8 and whole >= {"checkpoint-2", "checkpoint-6"}


def test_a_second_signal_stops_at_once(tiny, tmp_path):
    stopped = Forked([*tiny, "--training.save_steps", "1"], tmp_path, "twice:reward")
    assert stopped.wait() == -signal.SIGTERM and "once more stops at once" in stopped.err
    # The first generation batch fed two steps; the signals fell into the third.
    assert RunFolder(tmp_path / "run").newest_complete().name == "checkpoint-2"


def test_a_lost_terminal_loses_nothing(tiny, tmp_path):
    """The kernel sends SIGHUP, and what is written to the terminal is an error from then on."""
    terminal, its_side = pty.openpty()
    process = Forked([*tiny, "--training.max_steps", "4000"], tmp_path, terminal=os.ttyname(its_side))
    shown = b""
    while b"step 3/4000" not in shown:
        shown += os.read(terminal, 10_000)
    os.close(its_side)
    os.close(terminal)
    assert process.wait() == 128 + signal.SIGHUP
    assert fault(RunFolder(tmp_path / "run").newest_complete()) is None


def test_a_run_whose_weights_overflow_or_that_leaves_no_model_is_not_done(tiny, tmp_path, monkeypatch):
    with pytest.raises(RunError, match="weights are no longer finite, and were not saved"):
        train_grpo.main([*tiny, "--training.learning_rate", "1e39", "--training.save_steps", "1"])
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    monkeypatch.setattr(GRPOTrainer, "save_model", lambda *_, **__: None)  # as ZeRO-3 without zero3_save_16bit_model
    with pytest.raises(RunError, match="no model was written"):
        train_grpo.main([*tiny, "--training.save_strategy=no", "--training.output_dir", str(tmp_path / "none")])


def test_a_second_run_into_the_folder_is_refused(tiny, tmp_path):
    first = Forked([*tiny, "--training.max_steps", "4000"], tmp_path)
    first.wait_for((tmp_path / "run/status.json").exists)
    assert f"in use by another run (process {first.pid} on " in refused(tiny)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    train_grpo.main([*tiny, "--training.max_steps", "1"])  # a dead process's lock is none
    assert "already holds a run" in refused(tiny)
