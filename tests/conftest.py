"""What the tests train on: a policy of the demo's shape, taught for two seconds, and its questions."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the harness does, before torch is imported
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "demo"))
from trl import GRPOTrainer  # noqa: E402

import harness.after.report as report  # noqa: E402
import train_grpo  # noqa: E402
from harness import rewards_file  # noqa: E402
from harness.during.watch import Watch  # noqa: E402
from harness.errors import UserError  # noqa: E402

# rewards.py as it was committed, so that no test depends on what a user has made of it.
REWARDS = ROOT / ".pytest_cache/rewards.py"
committed = subprocess.run(["git", "show", "HEAD:rewards.py"], cwd=ROOT, capture_output=True).stdout
REWARDS.parent.mkdir(exist_ok=True)
mine = REWARDS.with_suffix(f".{os.getpid()}")
mine.write_bytes(committed or (ROOT / "rewards.py").read_bytes())
mine.replace(REWARDS)
rewards_file.DEFAULT = REWARDS
rewards_file.use(REWARDS)
rewards_file.rewards_py()  # `import rewards` finds it now

draw_curves, report.draw_curves = report.draw_curves, lambda *_: None  # over half of a tiny run's time


@pytest.fixture(autouse=True)
def as_marked(request, monkeypatch) -> None:
    """Runs of a test marked `draws` draw their curves; only --check of one marked `miniature` trains a miniature."""
    if request.node.get_closest_marker("draws"):
        monkeypatch.setattr(report, "draw_curves", draw_curves)
    rewards_file.use(None)
    if not request.node.get_closest_marker("miniature"):  # others break what it would go through
        monkeypatch.setattr("harness.before.check.has_miniature", lambda args: False)


@pytest.fixture(scope="session")
def rows() -> list[dict]:
    return [json.loads(line) for line in (ROOT / "demo/questions.jsonl").open(encoding="utf-8")]


@pytest.fixture(scope="session")
def policy(tmp_path_factory, rows, worker_id) -> str:
    """A folder that from_pretrained opens; the first process of pytest that needs it makes it for all."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared if worker_id == "master" else shared.parent) / "policy"
    with FileLock(f"{folder}.lock"):
        if not (folder / "tokenizer_config.json").exists():
            import build
            from transformers import set_seed

            set_seed(0)
            tokenizer = build.build_tokenizer(rows)
            model = build.build_model(tokenizer)
            build.pretrain(model, tokenizer, rows, epochs=3)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_arguments(policy: str, folder: Path) -> list[str]:
    """Command-line arguments of a run of the demo that takes two seconds: 4 steps of 8 completions."""
    values = {
        "model.pretrained_model_name_or_path": policy,
        "dataset.data_files": ROOT / "demo/questions.jsonl",
        "training.output_dir": folder / "run",
        "training.max_steps": 4,
        "training.num_generations": 4,
        "training.per_device_train_batch_size": 8,
        "training.steps_per_generation": 2,
        "training.max_completion_length": 16,
        "training.logging_steps": 1,
    }
    overrides = [part for key, value in values.items() for part in (f"--{key}", str(value))]
    return ["--rewards_file", str(REWARDS), "--config", str(ROOT / "demo/config.yaml"), *overrides]


@pytest.fixture
def tiny(policy, tmp_path) -> list[str]:
    return tiny_arguments(policy, tmp_path)


SIX_STEPS = ["--training.max_steps", "6", "--training.save_steps", "2"]


def dies_in_step(number: int, arguments: list[str]) -> None:
    """A run that ends at once in that step, as one that is killed does; in its second one, something is warned of."""
    step = GRPOTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 1:
            (watch,) = [each for each in self.callback_handler.callbacks if isinstance(each, Watch)]
            watch.warn(self.state, "cause", "seen before the kill")
        if self.state.global_step == number - 1:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GRPOTrainer, "training_step", dies)
        train_grpo.main(arguments)


@pytest.fixture(scope="session")
def dead(policy, tmp_path_factory) -> Path:
    """The folder of a run of SIX_STEPS, saved at 2 and 4, that died in step 6; tests use copies of it."""
    folder = tmp_path_factory.mktemp("dead")
    dies_in_step(6, [*tiny_arguments(policy, folder), *SIX_STEPS])
    while not (folder / "run/checkpoint-4/manifest.json").exists():  # sealed beside the training
        time.sleep(0.01)
    return folder / "run"


@pytest.fixture
def interrupted(dead, tiny, tmp_path) -> list[str]:
    """Arguments of the copy in tmp_path, which differ in its place only."""
    shutil.copytree(dead, tmp_path / "run")
    return [*tiny, *SIX_STEPS]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def refused(arguments: list[str]) -> str:
    """The one-line message with which train_grpo.py refuses a command line."""
    with pytest.raises(UserError) as error:
        train_grpo.main(arguments)
    message = str(error.value)
    assert "\n" not in message and ": " in message
    return message
