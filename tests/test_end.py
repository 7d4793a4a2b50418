"""How a program ends: packages that are missing, and what it prints where nobody can read it."""

import json
import os
import shlex
import shutil
import subprocess
import sys

from conftest import REWARDS, ROOT


def test_missing_packages_are_one_line_with_the_command_that_installs_them(tmp_path):
    shutil.copy(REWARDS, tmp_path)
    for command in ("train_grpo.py", "demo/build.py", "-m harness chat outputs/demo", f"{tmp_path}/rewards.py"):
        start = [sys.executable, "-S", *command.split()]  # a Python without packages
        result = subprocess.run(start, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result
        assert result.stderr.startswith("error: ") and "requirements.txt" in result.stderr, result


BESIDE = [  # what lies beside the program, what Python is told to do, the exit status
    ("vllm/", "from trl import GRPOTrainer", 2),
    ("deepspeed/", "import deepspeed.zero", 2),
    ("datasets.py", "from datasets import load_dataset", 2),
    ("trl.py", "import trl; trl.GRPOConfig", 2),
    ("data/", "from trl import nothing", 1),  # a mistake of ours
]


def test_what_lies_in_the_place_of_a_package_is_named(tmp_path):
    for i, (name, statement, status) in enumerate(BESIDE):
        place = tmp_path / str(i) / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True)
        place.touch()
        program = f"from harness.end import exit_status\ndef main():\n    {statement}\nexit(exit_status(main))\n"
        (place.parent / "program").write_text(program)
        command = [sys.executable, place.parent / "program"]
        result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert result.returncode == status and ("Traceback" in result.stderr) == (status == 1), result
        assert status == 1 or f"\nerror: {place.with_suffix('')}: is taken" in f"\n{result.stderr}", result


# The encoding, and what stdout and stderr are
NOT_WRITABLE = [("ascii", "2>&1 | head -c 1"), ("utf-8", ">/dev/full 2>/dev/full"), ("latin-1", ">&- 2>&-")]


def test_what_is_printed_fails_nothing(tiny, tmp_path):
    prints = "lambda: print('🗻' * 10**6) or exit(7)"
    code = f"from harness.end import exit_status; exit(exit_status({prints}))"
    for encoding, where in NOT_WRITABLE:
        line = f"{shlex.join([sys.executable, '-c', code])} {where}; exit ${{PIPESTATUS[0]}}"
        shell = subprocess.run(["bash", "-c", line], cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": encoding})
        assert shell.returncode == 7, where
    run = shlex.join([sys.executable, "train_grpo.py", *tiny, "--prompts.system", "🗻\n"])
    shell = ["bash", "-c", f"{run} 2>{tmp_path}/err | head -1; exit ${{PIPESTATUS[0]}}"]
    ran = subprocess.run(shell, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "cp932"}, stdout=subprocess.PIPE)
    assert ran.returncode == 0 and ran.stdout.startswith(b"model") and "Traceback" not in (tmp_path / "err").read_text()
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "done"
