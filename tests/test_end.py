"""How a program ends: packages that are missing."""

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


def test_a_module_that_is_missing_though_all_packages_are_there_is_no_users_mistake():
    code = "from harness.end import exit_status\nexit_status(lambda: __import__('not_there'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" in result.stderr and result.stderr.endswith("ModuleNotFoundError: No module named 'not_there'\n")
