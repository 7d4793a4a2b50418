"""The notebooks: every cell runs, on a CPU and with a tiny model; both languages have the same code."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import nbformat
from conftest import REWARDS, ROOT
from nbclient import NotebookClient

ENGLISH, JAPANESE = (nbformat.read(ROOT / f"notebooks/grpo_in_colab{end}.ipynb", 4) for end in ("", ".ja"))
# Laid over the cell `settings`: the demo's model in place of the real one, and a CPU in place of the T4.
SMALL = """
REPOSITORY = "{repository}"
DEMO = "--config demo/config.yaml --training.max_steps 2 --samples.held_out 8 --training.max_completion_length 16"
SETTINGS = (
    f"--config recipes/t4.yaml {{DEMO}} --training.output_dir {{RUN}} --training.fp16 false"
    " --training.per_device_train_batch_size 8 --training.gradient_accumulation_steps 2"
)
"""
MISTAKE = 'from train_grpo import main\nmain(["--training.learnin_rate", "1"])'
VERDICT = r"(learned|lost|unchanged|unclear|hacked) in this run: "
SHOWN = {  # in the output of each cell
    "taste": rf"Teaching a model of (?s:.*)\n{VERDICT}(?s:.*)image/png",
    "rewards": "emoji_reward\tlength_reward\tcharacters\ttext\n2\t",
    "rehearse": "trained with LoRA(?s:.*)Worst case(?s:.*)\nThe run: 2 steps in ",
    "train": rf"merge it: (?s:.*)\n{VERDICT}",
    "verdict": rf"\*\*{VERDICT}(?s:.*)\n\| total \|",
    "answers": "\nheld out ─(?s:.*)\nanswer: ",
    "chat": r"富士山の高さは\?\n  base: (?s:.*)\n  trained: ",
}


def shown(cell) -> str:
    """What stands under a cell: its text, and the kinds of its pictures and the like."""
    texts = [out.get("text") or "\n".join([*out.get("data", {}), *map(str, out.get("data", {}).values())])
             for out in cell.outputs]  # fmt: skip
    return re.sub(r"\x1b\[[\d;]*m", "", "".join(texts).replace("\r\n", "\n"))


def repository(folder: Path) -> Path:
    """A git repository with the files as they are now, whose demo is taught for three rounds instead of 60."""
    left_out = (".git", ".venv", "outputs", "model", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*left_out))
    shutil.copy(REWARDS, folder)
    build = folder / "demo/build.py"
    build.write_text(build.read_text(encoding="utf-8").replace("epochs=60", "epochs=3"), encoding="utf-8")
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as it is"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


def test_every_cell_runs_and_shows_what_it_is_for(tmp_path, monkeypatch):
    """Kernels find this Python's programs, write nothing into the home folder, and pip downloads nothing."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    notebook = nbformat.from_dict(ENGLISH)
    place = 1 + next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(place, nbformat.v4.new_code_cell(SMALL.format(repository=repository(tmp_path / "remote"))))
    notebook.cells.append(nbformat.v4.new_code_cell(MISTAKE, metadata={"tags": ["raises-exception"]}))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    *said, end = notebook.cells.pop().outputs
    assert end.traceback == ["error: training.learnin_rate: unknown, did you mean learning_rate?"]
    assert [output for output in said if "TqdmWarning" not in output.text] == []  # that ipywidgets is not installed
    found = {cell.id: shown(cell) for cell in notebook.cells if cell.cell_type == "code" and cell.id in SHOWN}
    assert set(found) == set(SHOWN)
    wrong = {name: text for name, text in found.items() if not re.search(SHOWN[name], text)}
    wrong |= {name: text for name, text in found.items() if re.search(r"^error|Traceback", text, re.MULTILINE | re.I)}
    assert wrong == {}
    with tarfile.open(tmp_path / "grpo/trained.tar.gz") as archive:
        names = archive.getnames()
    assert "outputs/colab/adapter_model.safetensors" in names and not any("checkpoint-" in name for name in names)
    assert re.search(r"^torch==", (tmp_path / "grpo/keep.txt").read_text(), re.MULTILINE)


def test_both_notebooks_have_the_same_code_and_no_outputs():
    cells = [[(cell.cell_type, cell.get("id")) for cell in each.cells] for each in (ENGLISH, JAPANESE)]
    code = [[cell for cell in each.cells if cell.cell_type == "code"] for each in (ENGLISH, JAPANESE)]
    assert cells[0] == cells[1] and code[0] == code[1]
    assert [cell.id for cell in code[0] if cell.outputs or cell.execution_count] == []


def test_what_a_notebook_installs_is_what_a_run_needs_but_for_torch():
    texts = [(ROOT / name).read_text() for name in ("requirements.txt", "requirements-colab.txt")]
    run, pins, colab = ([re.sub(r"\s*#.*", "", line) for line in text.splitlines() if line[0] != "#"]
                        for text in (texts[0].split("# what they bring along")[0], *texts))  # fmt: skip
    assert {line.partition("==")[0] for line in [*colab, "torch"]} == {line.partition("==")[0] for line in run}
    assert [line for line in colab if "==" in line and line not in pins] == []
