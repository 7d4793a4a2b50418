"""Real processes that start in a tenth of a second: forked from a server that has imported torch and TRL once.

Only what is read while a module is imported (HF_HUB_OFFLINE, the hash seed) is the server's.
"""

import ctypes
import fcntl
import multiprocessing.forkserver
import os
import shutil
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 300  # until a process counts as hanging
server = multiprocessing.get_context("forkserver")
USED = ["tools.launch", "during.checkpoints", "tools.rehearse", "before.check", "after.report"]
server.set_forkserver_preload(["break_it", *(f"harness.{name}" for name in USED)])


class Forked:
    """A process of train_grpo.py, or of `python -m harness launch`; what it prints goes into `folder`.

    fault: as break_it.py takes it. environment: variables to add. terminal: a pseudo-terminal's path, to be its own.
    disk: a folder that in this process is a disk of its own, of 100 MB; copied to its side at the end.
    """

    def __init__(self, arguments, folder: Path, fault="", program="train_grpo", environment=None, terminal="", disk=""):
        folder.mkdir(parents=True, exist_ok=True)
        self.files = [folder / name for name in ("stdout", "stderr")]
        variables = dict(os.environ) | (environment or {})
        outputs = [terminal] * 2 if terminal else list(map(str, self.files))
        _start_server()
        how = (program, list(map(str, arguments)), fault, variables, outputs, bool(terminal), str(disk))
        self.process = server.Process(target=_child, args=how, daemon=True)  # stopped at the latest when pytest ends
        self.process.start()
        self.pid, self.send_signal = self.process.pid, lambda number: os.kill(self.process.pid, number)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait_for(self, happens: Callable) -> None:
        """Until `happens()` is true, which has to be before the process ends."""
        while not happens():
            assert self.poll() is None or happens(), self.err
            time.sleep(0.02)

    def wait(self) -> int:
        """Its exit status; negative where a signal has killed it."""
        self.process.join(SECONDS)
        if self.poll() is None:
            self.process.kill()
            raise AssertionError(f"it hangs: {self.err}")
        return self.poll()

    @property
    def out(self) -> str:
        return self.files[0].read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return self.files[1].read_text(encoding="utf-8") if self.files[1].exists() else ""


def two(arguments: list[str], folder: Path, fault: str = "") -> list[Forked]:
    """The two processes of one run, without a launcher; each leaves its last line in `folder`/RANK.json."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    group["TRAIN_GRPO_ENDS"] = str(folder)
    ranks = [group | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    return [Forked(arguments, folder / rank["RANK"], fault, environment=rank) for rank in ranks]


def _start_server() -> None:
    """Python 3.11 gives the server no sys.path but PYTHONPATH's."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT}/tests"
    multiprocessing.forkserver.ensure_running()
    del os.environ["PYTHONPATH"]
    if before is not None:
        os.environ["PYTHONPATH"] = before


def _child(program, arguments, fault, variables, outputs, terminal, disk) -> None:
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(variables)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if terminal:
        os.setsid()
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    if terminal:
        os.dup2(1, 0)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    if disk:
        _mount(disk)
    import break_it

    import harness.after.report
    import harness.tools.launch
    import train_grpo
    from harness.end import exit_status

    harness.after.report.draw_curves = lambda *_: None
    sys.argv = [f"{program}.py", *arguments]
    if fault:
        break_it.put_in(fault)
    main = harness.tools.launch.main if program == "launch" else train_grpo.main
    status = exit_status(lambda: main(arguments))
    if disk:
        shutil.copytree(disk, f"{disk}-copy")
    sys.exit(status)


def _mount(folder: str) -> None:
    """A disk of 100 MB that this process alone sees, in name spaces of its own, as `unshare --map-root-user` makes."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    new_user, new_mounts = 0x10000000, 0x00020000
    assert libc.unshare(new_user | new_mounts) == 0, os.strerror(ctypes.get_errno())
    with suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    assert libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"size=100m") == 0, os.strerror(ctypes.get_errno())
