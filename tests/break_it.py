"""train_grpo.py with one fault inside: python tests/break_it.py FAULT:WHERE[@RANK] ARGUMENT..., or tests/forked.py.

sigterm:PHASE, usr1:PHASE    the signal, at the second call of a phase
doubled:PHASE, twice:PHASE   SIGTERM twice, at once or four seconds apart
kill:N                       SIGKILL when the second checkpoint has N files   nan:STEP     a loss of NaN
fill:MB                      at the second save, the disk fills up but for so much
raise:N, children:N          at its Nth call a reward raises; has children, and Ctrl-C comes to all that are forked
spread:PHASE                 SIGTERM to this process and to its launcher, as Slurm does
weights:uncompiled           nothing is compiled; OUTPUT_DIR/RANK.pt has each process's weights and last advantages
@RANK                        in this process of several only
"""

import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import accelerate
import torch
import transformers
from trl import GRPOTrainer

import harness.after.report
import harness.before.check
import train_grpo
from harness.end import exit_status
from harness.rewards_file import rewards_py, use

PHASES = {
    "generate": (GRPOTrainer, "_generate_and_score_completions"),
    "reward": (GRPOTrainer, "_calculate_rewards"),
    "backward": (accelerate.Accelerator, "backward"),
    "save": (transformers.Trainer, "_save_optimizer_and_scheduler"),
}


def at_call(count: int, owner: type, name: str, action) -> None:
    """Have the `count`-th call of a method begin with `action(its arguments)`."""
    method, calls = getattr(owner, name), []

    def broken(*args, **kwargs):
        calls.append(None)
        if len(calls) == count:
            action(*args)
        return method(*args, **kwargs)

    setattr(owner, name, broken)


def kill_at_file(number: int):
    """From now on, SIGKILL as soon as the checkpoint being written holds `number` files."""

    def begin(trainer, *_):
        checkpoint = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"

        def look(*_):
            if checkpoint.exists() and len(os.listdir(checkpoint)) >= number:
                os.kill(os.getpid(), signal.SIGKILL)

        threading.setprofile_all_threads(look) if sys.version_info >= (3, 12) else threading.setprofile(look)
        sys.setprofile(look)

    return begin


def fill(megabytes: int, trainer, *_) -> None:
    folder = Path(trainer.args.output_dir)
    (folder / "_filler").write_bytes(bytes(shutil.disk_usage(folder).free - megabytes * 2**20))


def keep_weights(trainer) -> None:
    weights = [weight.detach() for weight in trainer.model.parameters()]
    weights.append(torch.tensor(trainer._logs["advantages"]))  # of the last completions of all processes
    torch.save(weights, Path(trainer.args.output_dir, f"{os.environ['RANK']}.pt"))


def raising(number: int):
    """length_reward, raising at its `number`-th call."""
    reward, calls = rewards_py().length_reward, []

    @functools.wraps(reward)
    def raises(*args, **kwargs):
        calls.append(None)
        if len(calls) >= number:
            raise ValueError("poison")
        return reward(*args, **kwargs)

    return raises


def _slowly(text: str) -> int:
    time.sleep(0.05)
    return len(text)


def with_children(number: int):
    """length_reward, beside children as rewards for code and mathematics start them."""
    reward, calls, fork = rewards_py().length_reward, [], multiprocessing.get_context("fork")
    multiprocessing.current_process()._config["daemon"] = False  # forked.py's are, and may have none
    spawned = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    fork.Process(target=time.sleep, args=(600,)).start()  # and forgotten

    @functools.wraps(reward)
    def beside_children(completions, **parameters):
        calls.append(None)
        endless = fork.Process(target=time.sleep, args=(600,))
        endless.start()
        texts = [completion[0]["content"] for completion in completions]
        with fork.Pool(2) as pool, ThreadPoolExecutor(2) as threads:
            lengths = pool.map_async(_slowly, texts)
            if len(calls) == number:  # one that was spawned is a program of its own, which Ctrl-C ends
                for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
                    os.kill(pid, signal.SIGINT if pid not in spawned._processes else 0)
            assert lengths.get() == [*threads.map(len, texts)] == [*spawned.map(len, texts)]
        endless.terminate()  # as after a time limit
        endless.join()
        assert subprocess.run(["sleep", "0.01"], check=True).returncode == 0
        return reward(completions, **parameters)

    return beside_children


def put_in(what: str) -> None:
    """Break this process as FAULT:WHERE[@RANK] says; --check trains no miniature, which would count as a call."""
    harness.before.check.has_miniature = lambda args: False
    use(Path(sys.argv[sys.argv.index("--rewards_file") + 1]))
    fault, where = what.split(":")
    where, _, rank = where.partition("@")
    if rank not in ("", os.environ.get("RANK")):
        pass
    elif fault == "raise":
        rewards_py().length_reward = raising(int(where))
    elif fault == "children":
        rewards_py().length_reward = with_children(int(where))
    elif fault == "weights":
        torch.compiler.set_stance("force_eager")
        at_call(1, GRPOTrainer, "save_state", keep_weights)
    elif fault == "spread":
        at_call(2, *PHASES[where], lambda *_: [os.kill(pid, signal.SIGTERM) for pid in (os.getppid(), os.getpid())])
    elif fault == "kill":
        at_call(2, GRPOTrainer, "_save_checkpoint", kill_at_file(int(where)))
    elif fault == "fill":
        at_call(2, GRPOTrainer, "_save_checkpoint", functools.partial(fill, int(where)))
    elif fault == "nan":
        step = GRPOTrainer.compute_loss
        GRPOTrainer.compute_loss = lambda self, *args, **kwargs: (
            step(self, *args, **kwargs) * (float("nan") if self.state.global_step + 1 == int(where) else 1)
        )
    else:
        number = signal.SIGUSR1 if fault == "usr1" else signal.SIGTERM
        signals = [number] * (2 if fault in ("twice", "doubled") else 1)
        apart = 4 if fault == "twice" else 0  # seconds
        at_call(2, *PHASES[where], lambda *_: [(os.kill(os.getpid(), n), time.sleep(apart)) for n in signals])


if __name__ == "__main__":
    harness.after.report.draw_curves = lambda *_: None
    put_in(sys.argv.pop(1))
    sys.exit(exit_status(train_grpo.main))
