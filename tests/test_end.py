"""How a program ends: packages that are missing, and what it prints where nobody can read it."""

import json
import os
import shlex
import shutil
import subprocess
import sys

from conftest import ROOT


def test_missing_packages_are_one_line_with_the_command_that_installs_them(tmp_path):
    for name in ("train_grpo.py", "config.yaml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "harness", tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    pip = f"is not installed for {sys.executable}; run {sys.executable} -m pip install -r requirements.txt\n"
    make = f"is not installed for {sys.executable}; start it with .venv/bin/python, where make has installed it\n"
    wrong = []
    for remedy in (pip, make):
        for command in (["train_grpo.py"], ["-m", "harness", "chat", "outputs/demo"]):
            start = [sys.executable, "-S", *command]  # a Python without packages
            result = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True)
            said = result.stderr.startswith("error: ") and result.stderr.endswith(remedy)
            if not said or result.stderr.count("\n") != 1 or result.returncode != 2:
                wrong.append((command, result))
        (tmp_path / ".venv").mkdir(exist_ok=True)
        (tmp_path / ".venv/installed").touch()
    assert wrong == []


def test_what_lies_in_the_place_of_a_package_is_named(tmp_path):
    rows = [  # what lies beside the program, and what Python is told to do
        ("vllm", "from trl import GRPOTrainer"),
        ("scipy", "import scipy.optimize"),
        ("datasets.py", "from datasets import load_dataset"),
        ("trl.py", "import trl; trl.GRPOConfig"),
        (None, "from trl import nothing"),  # a mistake of ours
    ]
    for name, statement in rows:
        folder = tmp_path / f"beside {name}"
        folder.mkdir()
        (folder / "data").mkdir()
        if name and name.endswith(".py"):
            (folder / name).touch()
        elif name:
            (folder / name).mkdir()
        program = f"from harness.end import exit_status\ndef main():\n    {statement}\nexit(exit_status(main))\n"
        (folder / "program").write_text(program)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, folder / "program"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        said = result.stderr.splitlines()
        if name:
            found = (result.returncode, said[-1].partition(": is taken")[0])
            assert found == (2, f"error: {folder / name.removesuffix('.py')}"), result
        else:
            assert result.returncode == 1 and "Traceback" in result.stderr


def test_a_module_that_is_missing_though_all_packages_are_there_is_no_users_mistake():
    code = "from harness.end import exit_status\nexit_status(lambda: __import__('not_there'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" in result.stderr and result.stderr.endswith("ModuleNotFoundError: No module named 'not_there'\n")


# By the encoding: what stdout and stderr are
NOT_WRITABLE = {
    "ascii": "| head -c 1",
    "cp932": "2>&1 | head -c 1",
    "utf-8": ">/dev/full 2>/dev/full",
    "latin-1": ">&- 2>&-",
}


def test_what_is_printed_fails_nothing(tiny, tmp_path):
    prints = "lambda: print('🗻' * 10**6) or exit(7)"
    code = f"from harness.end import exit_status; exit(exit_status({prints}))"
    for encoding, where in NOT_WRITABLE.items():
        line = f"{shlex.join([sys.executable, '-c', code])} {where}; exit ${{PIPESTATUS[0]}}"
        shell = subprocess.run(["bash", "-c", line], cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": encoding})
        assert shell.returncode == 7, where
    run = shlex.join([sys.executable, "train_grpo.py", *tiny, "--prompts.system", "🗻\n"])
    shell = ["bash", "-c", f"{run} 2>{tmp_path}/err | head -1; exit ${{PIPESTATUS[0]}}"]
    ran = subprocess.run(shell, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "cp932"}, stdout=subprocess.PIPE)
    assert ran.returncode == 0 and ran.stdout.startswith(b"model") and "Traceback" not in (tmp_path / "err").read_text()
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "done"
