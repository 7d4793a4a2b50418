"""`make real`: its settings and questions on the tests' policy; and two steps of the real model, where it is made."""

import json

import pytest
from conftest import ROOT

import train_grpo
from harness.run_folder import RunFolder

IF_MADE = pytest.mark.skipif(not (ROOT / "demo/real/model").exists(), reason="make demo/real/model/config.json")


@pytest.mark.parametrize("model", [None, pytest.param("demo/real/model", marks=IF_MADE)])
def test_make_real_trains_with_its_settings(model, policy, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    small = "--training.max_steps 2 --training.gradient_accumulation_steps 1 --training.max_completion_length 8"
    train_grpo.main(
        ["--config", "recipes/cpu.yaml", "--config", "demo/real/config.yaml", *small.split(), "--samples.held_out", "2"]
        + ["--training.output_dir", str(tmp_path / "run"), "--model.pretrained_model_name_or_path", model or policy]
    )
    asked = RunFolder(tmp_path / "run").samples()
    assert [row["held_out"] for row in asked] == [False, False, True, True]
    assert all(row["after"]["completion"] for row in asked)


def test_each_question_of_the_real_demo_has_one_answer():
    rows = [json.loads(line) for line in (ROOT / "demo/real/questions.jsonl").open(encoding="utf-8")]
    questions = [row["question"] for row in rows]
    assert len(rows) > 300 and len(set(questions)) == len(rows) and all(row["answer"] for row in rows)
