"""accelerate launch, ending as a single process does: with train_grpo.py's one line, once, and its exit status.

python -m harness launch --num_processes 8 train_grpo.py --config mine.yaml
python -m harness launch --config_file recipes/launch/fsdp2.yaml --num_processes 8 train_grpo.py

It takes every argument of `accelerate launch`. A signal goes on to the processes, which finish their step and save it.
"""

import argparse
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from accelerate.commands.config.config_args import default_config_file
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from harness.during.stop import say_stopping, stop
from harness.errors import RunError, Stopped, UserError, one_line
from harness.processes import ENDS, read_ends

DEFAULTS = {
    "PET_SIGNALS_TO_HANDLE": "none",  # torch's own handler would leave the processes behind at a second signal
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "86400",  # seconds to finish a step and save it; torch's 30 are too few
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP's advice, once per process
}

IF_SAVED = "the same command with --resume goes on from the newest checkpoint, if there is one"


def launch_options(arguments: list[str] | None) -> argparse.Namespace:
    """accelerate's options, with a free port, and with --num_processes processes also where there is no GPU."""
    parser = launch_command_parser()
    parser.prog, parser.description = "python -m harness launch", __doc__
    parser.usage = "python -m harness launch [arguments of accelerate launch] --num_processes N train_grpo.py [its own]"
    options = parser.parse_args(arguments)
    if not (options.module or options.no_python or Path(options.training_script).exists()):
        raise UserError(f"{options.training_script}: there is no such script; name train_grpo.py, then its arguments")
    if options.num_processes is not None and options.num_processes < 1:
        raise UserError(f"--num_processes {options.num_processes}: starts nothing; give the number of GPUs")
    config = Path(options.config_file or default_config_file)
    machines_given = options.num_machines or (config.exists() and "num_machines" in config.read_text())
    if not machines_given and not options.main_process_port:
        options.main_process_port = 0  # any that is free, for two runs on one machine
    if not config.exists():
        engines = ("cpu", "tpu", "use_fsdp", "use_deepspeed", "use_megatron_lm")
        options.multi_gpu = not any(getattr(options, name) for name in engines)
    return options


def main(arguments: list[str] | None = None) -> None:
    options = launch_options(arguments)
    if options.multi_gpu and (options.num_processes or torch.cuda.device_count()) < 2:  # there is nothing to launch
        os.execv(sys.executable, [sys.executable, options.training_script, *options.training_script_args])
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.disable()  # torch's pages about processes that end
    warnings.simplefilter("ignore")
    failures = {}
    signalled = None
    with TemporaryDirectory() as folder:
        os.environ[ENDS] = folder
        try:
            stop.listen(forward, kill_processes)
            launch_command(options)
        except SignalException as error:
            signalled = error.sigval
        except ChildFailedError as error:
            failures = error.failures
        except Exception as error:  # ValueError, ImportError: accelerate's, about its arguments
            raise UserError(f"launch: {one_line(error)}; see accelerate launch --help") from error
        finally:
            del os.environ[ENDS]
        ends = read_ends(folder)
    exit_like_the_first(ends, failures, signalled)


def forward(number: int) -> None:
    """Have torch hand a signal on to all processes, and wait for them."""
    say_stopping()
    raise SignalException("", signal.Signals(number))


def kill_processes(number: int) -> None:
    for process in psutil.Process().children(recursive=True):
        process.kill()


def exit_like_the_first(ends: dict[int, dict], failures: dict[int, ProcessFailure], signalled: int | None) -> None:
    """Print what the first process that failed or was stopped has said, and exit with its status.

    Args:
        ends: what each process has written at its end, by rank.
        failures: by rank, in the order in which torch noticed them.
        signalled: the signal that this launcher got.
    """
    for rank, failure in list(failures.items())[:1]:
        if failure.exitcode < 0 and rank not in ends:
            raise RunError(f"process {rank} was killed by {failure.signal_name()}; {IF_SAVED}")
    failed = [end for end in ends.values() if end["status"]]
    if failed:
        first = min(failed, key=lambda end: end["time"])
        if first["line"]:
            print(first["line"], file=sys.stderr)
        sys.exit(first["status"])
    if signalled and not ends:
        raise Stopped(signalled, IF_SAVED)
    if failures or not ends:
        raise RunError(f"a process has ended without a word; {IF_SAVED}")
