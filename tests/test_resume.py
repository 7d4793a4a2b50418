"""A run knows its settings, rewards and data: resuming with others is refused, and so is what cannot be exact."""

import json
import shutil

import pytest
import torch
from conftest import ROOT, dies_in_step, refused, weights

import rewards
import train_grpo
from harness.after import report
from harness.errors import RewardError, RunError
from harness.run_folder import RunFolder
from harness.tools import merge


def logs(folder, key="loss") -> dict[int, float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {log["step"]: log[key] for log in history if key in log}


def test_other_rewards_refuse_to_resume_and_the_difference_is_shown(interrupted, tmp_path, monkeypatch, capsys):
    changed = (ROOT / "rewards.py").read_text(encoding="utf-8").replace("float(min(", "-float(min(")
    (tmp_path / "rewards.py").write_text(changed, encoding="utf-8")
    monkeypatch.setattr(rewards, "__file__", str(tmp_path / "rewards.py"))
    message = refused([*interrupted, "--resume"])
    assert "rewards.py is not the run's: -    return [float(min(" in message and "| +    return [-float(min(" in message
    again = ["--config", str(tmp_path / "run/config.yaml"), "--training.output_dir", str(tmp_path / "again"), "--check"]
    train_grpo.main(again)
    said = capsys.readouterr().out
    assert "warning: rewards.py is not the one that " in said and "+    return [-float(min(" in said


def test_other_data_refuse_to_resume(interrupted, rows, tmp_path):
    """The data's file is the run's, but has another row."""
    shutil.copy(ROOT / "demo/questions.jsonl", tmp_path / "q.jsonl")
    with (tmp_path / "q.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**rows[0], "query": "新しい質問"}, ensure_ascii=False) + "\n")
    settings = (tmp_path / "run/config.yaml").read_text(encoding="utf-8")
    settings = settings.replace(str(ROOT / "demo/questions.jsonl"), str(tmp_path / "q.jsonl"))
    (tmp_path / "run/config.yaml").write_text(settings, encoding="utf-8")
    message = refused([*interrupted, "--dataset.data_files", str(tmp_path / "q.jsonl"), "--resume"])
    assert "227 rows then, 228 now" in message


def test_a_missing_record_is_reported(interrupted, tmp_path):
    for name in ("run.json", "rewards.py"):
        (tmp_path / "run" / name).rename(tmp_path / name)
        assert "missing or damaged" in refused([*interrupted, "--resume"]), name
        (tmp_path / name).rename(tmp_path / "run" / name)
    (tmp_path / "run/run.json").write_text("{}")
    assert "missing or damaged" in refused([*interrupted, "--check", "--resume"])


# What upstream, or we, once resumed inexactly or not at all
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
def test_resumed_exactly(settings, tiny, tmp_path):
    arguments = [*tiny, "--training.max_steps", "8", "--training.save_steps", "3", *settings]
    dies_in_step(5, arguments)
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


def test_an_adapter_is_merged_first_with_the_command_that_is_printed(tiny, tmp_path, capsys):
    tiny += ["--training.max_steps", "1"]
    lora = ["--config", str(ROOT / "recipes/lora.yaml"), "--training.output_dir", str(tmp_path / "lora")]
    train_grpo.main([*tiny, *lora])
    assert "\nmerge it: " in capsys.readouterr().out
    start = ["--model.pretrained_model_name_or_path"]
    message = refused([*tiny, *start, str(tmp_path / "lora")])
    assert "python -m harness merge " in message
    merge.main([message.split("harness merge ")[1].split(";")[0]])
    train_grpo.main([*tiny, *start, f"{tmp_path}/lora-merged"])
    assert (tmp_path / "run/model.safetensors").exists() and torch.get_default_dtype() == torch.float32


def test_what_could_not_be_gone_on_with_is_refused_at_the_start(tiny):
    save_only_model = ["--training.save_only_model", "true", "--resume", "auto"]
    assert refused([*tiny, *save_only_model]).startswith("training.save_only_model: ")


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
    before = weights(tmp_path / "run")
    train_grpo.main([*tiny, "--resume"])
    assert weights(tmp_path / "run") == before
    assert all(sample["after"] for sample in RunFolder(tmp_path / "run").samples())
