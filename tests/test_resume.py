"""A run knows its settings, rewards and data: resuming with others is refused, and so is what cannot be exact."""

import json
import shutil

import pytest
import torch
from conftest import ROOT, refused, tiny_arguments
from trl import GRPOTrainer

import rewards
import train_grpo
from harness.after import report
from harness.errors import RewardError, RunError
from harness.run_folder import RunFolder, difference
from harness.tools import merge


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def logs(folder, key="loss") -> dict[int, float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {log["step"]: log[key] for log in history if key in log}


def dies_in_step(number: int, arguments: list[str], monkeypatch) -> None:
    step = GRPOTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == number - 1:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GRPOTrainer, "training_step", dies)
        train_grpo.main(arguments)


MORE = ["--training.max_steps", "6", "--training.save_steps", "2"]


@pytest.fixture(scope="module")
def dead(policy, tmp_path_factory):
    """The folder of a run that was saved at step 2 and died in step 4; tests use copies of it."""
    folder = tmp_path_factory.mktemp("dead")
    with pytest.MonkeyPatch.context() as patch:
        dies_in_step(4, [*tiny_arguments(policy, folder), *MORE], patch)
    return folder / "run"


@pytest.fixture
def stopped(dead, tiny, tmp_path):
    """Arguments of the copy, which differ in its place only."""
    shutil.copytree(dead, tmp_path / "run")
    return [*tiny, *MORE]


def test_a_run_keeps_what_it_was_started_with(stopped, tmp_path):
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["rows"] == 227 and len(run["data_sha256"]) == 64
    assert (tmp_path / "run/rewards.py").read_text() == (ROOT / "rewards.py").read_text()


def test_other_rewards_refuse_to_resume_and_the_difference_is_shown(stopped, tmp_path, monkeypatch, capsys):
    changed = (ROOT / "rewards.py").read_text(encoding="utf-8").replace("float(min(", "-float(min(")
    (tmp_path / "rewards.py").write_text(changed, encoding="utf-8")
    monkeypatch.setattr(rewards, "__file__", str(tmp_path / "rewards.py"))
    message = refused([*stopped, "--resume"])
    assert "rewards.py is not the run's: -    return [float(min(" in message and "| +    return [-float(min(" in message
    again = ["--config", str(tmp_path / "run/config.yaml"), "--training.output_dir", str(tmp_path / "again"), "--check"]
    train_grpo.main(again)
    said = capsys.readouterr().out
    assert "warning: rewards.py is not the one that " in said and "+    return [-float(min(" in said


def test_other_data_refuse_to_resume(stopped, rows, tmp_path):
    """The data's file is the run's, but has another row."""
    shutil.copy(ROOT / "demo/questions.jsonl", tmp_path / "q.jsonl")
    with (tmp_path / "q.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**rows[0], "query": "新しい質問"}, ensure_ascii=False) + "\n")
    settings = (tmp_path / "run/config.yaml").read_text(encoding="utf-8")
    settings = settings.replace(str(ROOT / "demo/questions.jsonl"), str(tmp_path / "q.jsonl"))
    (tmp_path / "run/config.yaml").write_text(settings, encoding="utf-8")
    message = refused([*stopped, "--dataset.data_files", str(tmp_path / "q.jsonl"), "--resume"])
    assert "227 rows then, 228 now" in message


def test_a_missing_record_is_reported(stopped, tmp_path):
    for name in ("run.json", "rewards.py"):
        (tmp_path / "run" / name).rename(tmp_path / name)
        assert "missing or damaged" in refused([*stopped, "--resume"]), name
        (tmp_path / name).rename(tmp_path / "run" / name)
    (tmp_path / "run/run.json").write_text("{}")
    assert "missing or damaged" in refused([*stopped, "--check", "--resume"])


def test_difference():
    assert difference("a\nb\nc\n", "a\nB\nc\n") == "-b | +B"
    assert difference("", "\n".join("abcdef")).endswith("| ... 2 more lines")


def test_without_a_complete_checkpoint_a_run_begins_only_with_auto(stopped, tmp_path):
    (tmp_path / "run/checkpoint-2/model.safetensors").write_bytes(b"")
    assert refused([*stopped, "--resume"]).endswith("start anew without --resume")
    (tmp_path / "run/_set-aside-1-checkpoint-2").rename(tmp_path / "run/checkpoint-2")
    train_grpo.main([*stopped, "--resume", "auto"])
    assert logs(tmp_path / "run").keys() == {1, 2, 3, 4, 5, 6}


# What upstream, or we, once resumed inexactly or not at all: settings, and whether weights have to be equal
EXACT = {
    "rows in their order, second epoch; logged every two steps": [
        *["--training.shuffle_dataset", "false", "--prompts.limit", "12", "--training.logging_steps", "2"],
    ],
    "a reference that follows; evaluated at the start": [
        *["--training.sync_ref_model", "true", "--training.ref_model_sync_steps", "1"],
        *["--training.ref_model_mixup_alpha", "0.5", "--training.beta", "0.5"],
        *["--training.eval_on_start", "true", "--training.eval_strategy", "steps", "--training.eval_steps", "3"],
        *["--training.per_device_eval_batch_size", "4", "--samples.held_out", "4"],
    ],
}


@pytest.mark.parametrize("settings", EXACT.values(), ids=EXACT)
def test_resumed_exactly(settings, tiny, tmp_path, monkeypatch):
    arguments = [*tiny, "--training.max_steps", "8", "--training.save_steps", "3", *settings]
    dies_in_step(5, arguments, monkeypatch)
    train_grpo.main([*arguments, "--resume"])
    train_grpo.main([*arguments, "--training.output_dir", str(tmp_path / "whole")])
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert logs(tmp_path / "run") == logs(tmp_path / "whole")
    assert logs(tmp_path / "run", "eval_reward") == logs(tmp_path / "whole", "eval_reward")


def test_more_steps_are_a_new_run_with_the_command_that_a_run_prints(tiny, tmp_path, capsys):
    tiny += ["--training.max_steps", "2"]
    train_grpo.main(tiny)
    goes_on = capsys.readouterr().out.split("go on: ")[1].splitlines()[0]
    message = refused([*tiny, "--resume", "--training.max_steps", "4"])
    assert "training.max_steps 2 -> 4; a run keeps its length" in message
    train_grpo.main(goes_on.split("train_grpo.py ")[1].split())
    assert weights(tmp_path / "run-more") != weights(tmp_path / "run")


def test_an_adapter_is_merged_first_with_the_command_that_is_printed(tiny, tmp_path, monkeypatch):
    tiny += ["--training.max_steps", "1"]
    lora = ["--config", str(ROOT / "recipes/lora.yaml"), "--training.output_dir", str(tmp_path / "lora")]
    train_grpo.main([*tiny, *lora])
    start = ["--model.pretrained_model_name_or_path"]
    message = refused([*tiny, *start, str(tmp_path / "lora")])
    assert "python -m harness merge " in message
    merge.main([message.split("harness merge ")[1].split(";")[0]])
    train_grpo.main([*tiny, *start, f"{tmp_path}/lora-merged"])
    assert (tmp_path / "run/model.safetensors").exists() and torch.get_default_dtype() == torch.float32


def test_what_could_not_be_gone_on_with_is_refused_at_the_start(tiny):
    save_only_model = ["--training.save_only_model", "true", "--resume", "auto"]
    assert refused([*tiny, *save_only_model]).startswith("training.save_only_model: ")
    for key in ("ignore_data_skip", "restore_callback_states_from_checkpoint"):  # --resume restores what a run needs
        assert refused([*tiny, f"--training.{key}", "true"]).startswith(f"training.{key}: ")


def test_a_judge_that_hangs_up_in_the_last_asking_costs_the_asking_only(tiny, tmp_path, monkeypatch):
    asked, ask = [], report.ask

    def hangs_up(*args):
        asked.append(None)
        if len(asked) == 2:
            raise RewardError("rewards.judge: raised ConnectionError: it hung up")
        return ask(*args)

    monkeypatch.setattr(report, "ask", hangs_up)
    with pytest.raises(RunError, match="rewards.judge: rai"):
        train_grpo.main(tiny)
    weights = (tmp_path / "run/model.safetensors").read_bytes()
    train_grpo.main([*tiny, "--resume"])
    assert (tmp_path / "run/model.safetensors").read_bytes() == weights
    assert all(sample["after"] for sample in RunFolder(tmp_path / "run").samples())
