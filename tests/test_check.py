"""Every mistake is one line in seconds: where, what, and what to do. A table a section, in-process; a few for real."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, refused

import train_grpo
from harness.before.data import load_data
from harness.before.policy import load_policy
from harness.errors import UserError
from harness.settings import read_settings


@pytest.fixture
def demo(policy, monkeypatch) -> list[str]:
    """The demo's command line, from the repository's root, with the tests' policy and --check."""
    monkeypatch.chdir(ROOT)
    return ["--config", "demo/config.yaml", "--model.pretrained_model_name_or_path", policy, "--check"]


def without(words: list[str], message: str) -> list[str]:
    return [word for word in words if word not in message]


MODEL = [
    (["--model.attn_implementation", "nobody/kernel"], ["the kernel nobody/kernel does not load"]),
    (["--model.attn_implementation", "flash"], ["model.attn_implementation: unknown 'flash'", "sdpa"]),
    (
        ["--model.pretrained_model_name_or_path", "./no"],
        ["there is no folder or file", f"{ROOT}/no"],
    ),
    (["--model.pretrained_model_name_or_path", "my/model"], [f"{ROOT}/my/model, and the Hub cannot be reached"]),
    (["--model.pretrained_model_name_or_path", "LICENSE"], ["LICENSE does not load"]),
    (["--lora.target_modules", "[q_prj]"], ["lora: ", "q_prj"]),
]


DATA = [
    (["--dataset.path", "my/data", "--dataset.data_files", "null"], ["dataset.path: there is no", "/my/data, and"]),
    (["--dataset.path", "./data", "--dataset.data_files", "null"], ["there is no folder or file", f"{ROOT}/data;"]),
    (["--dataset.data_files", "no.json"], ["data_files: there is no folder or file", f"{ROOT}/no.json; fix"]),
    (["--dataset.data_files", "LICENSE"], ["dataset.data_files: LICENSE:2: not JSON"]),
    (["--dataset.split", "trian"], ["dataset.split: ", "train"]),
    (["--prompts.column", "question"], ["prompts.column: there is no column 'question'", "did you mean query?"]),
    (["--prompts.max_length", "3"], ["prompts.max_length: no prompt is left", "raise it"]),
    (["--samples.questions", "[富士山の高さは?, '']"], ["samples.questions: one of them is empty"]),
    (["--prompts.limit", "8"], ["dataset: 8 read: 6 to train on, 2 held out", "takes 8", "samples.held_out"]),
]  # fmt: skip


TRAINING = [
    (["--training.generation_kwargs", "512"], ["training.generation_kwargs: should be a valid dictionary, got 512"]),
    (["--training.generation_kwargs", "{temperature: 1}"], ["kwargs.temperature: ", "training.temperature"]),
    (["--training.generation_kwargs", "{max_cache_length: 9}"], ["max_cache_length: unknown to transformers.Gen"]),
    (["--training.report_to", "wandbx"], ["training.report_to: ", "wandbx"]),
    (["--training.report_to", "wandb"], ["training.report_to: ", "wandb"]),
    (["--training.push_to_hub", "true"], ["training.push_to_hub: ", "hf auth login"]),
    (["--training.output_dir", "LICENSE/x"], ["training.output_dir: LICENSE/x cannot be written"]),
    (["--training.eval_on_start", "true"], ["training.eval_on_start: needs training.eval_strategy"]),
    (["--training.bf16", "true", "--training.fp16", "true"], ["training.bf16: ", "fp16"]),
    (["--model.quantization_config", "{load_in_4bit: true}"], ["model.quantization_config: ", "qlora.yaml"]),
    (["--training.eval_strategy", "steps", "--samples.held_out", "0"], ["training.eval_strategy: "]),
    (["--training.max_completion_length", "500"], ["training.max_completion_length: ", "context of 512"]),
    (["--training.per_device_train_batch_size", "9"], ["generation_batch_size (9)", "divisible by num_"]),
    (["--training.generation_batch_size", "65"], ["generation_batch_size (65)", "divisible"]),
    (
        ["--training.eval_strategy", "steps", "--training.per_device_eval_batch_size", "4"],
        ["eval batch size", "divisible"],
    ),
    (["--training.use_vllm", "true"], ["training.use_vllm: vLLM is not installed", "make gpu"]),
    (
        ["--training.bf16", "true", "--training.use_transformers_continuous_batching", "true"],
        ["continuous_batching: with bf16 it casts the weights", "model.dtype: bfloat16 and without LoRA"],
    ),
]  # fmt: skip


def test_mistakes_in_model_data_and_training(demo):
    messages = [(words, refused(demo + arguments)) for arguments, words in [*MODEL, *DATA, *TRAINING]]
    assert not [(words, message) for words, message in messages if without(words, message)]


def rows_file(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return ["--dataset.data_files", str(path)]


def test_a_reward_whose_column_is_missing_names_it(tiny, rows, tmp_path):
    arguments = [*tiny, *rows_file(tmp_path, [{"query": row["query"], "tools": [1]} for row in rows])]
    message = refused([*arguments, "--check"])
    assert "rewards.answer_reward: needs the column answer" in message and "null" in message
    train_grpo.main([*arguments, "--rewards.answer_reward", "null", "--check"])


def test_a_reward_model_that_is_not_there_is_named(demo):
    message = refused([*demo, "--rewards.nobody/judge.weight", "1"])
    assert message.startswith("rewards.nobody/judge: ") and "the Hub cannot be reached" in message


def test_empty_questions_are_counted_and_dropped_only_on_request(tiny, rows, tmp_path):
    for bad in (None, "", "   "):
        questions = [{**row, "query": bad if i in (3, 7) else row["query"]} for i, row in enumerate(rows)]
        settings = read_settings([*tiny, *rows_file(tmp_path, questions)])
        tokenizer = load_policy(settings).tokenizer
        with pytest.raises(UserError, match=r"2 of 291 rows hold no question \(rows 3, 7.*drop_empty"):
            load_data(settings, tokenizer)
        settings.prompts.drop_empty = True
        assert load_data(settings, tokenizer).counts["empty (dropped)"] == 2


def test_a_tokenizer_without_chat_template_is_refused(policy, tiny, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(policy, folder)
    (folder / "chat_template.jinja").unlink()
    assert "no chat template" in refused([*tiny, "--model.pretrained_model_name_or_path", str(folder)])


def test_too_little_disk_is_reported_with_both_figures(tiny, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    message = refused([*tiny, "--check"])
    assert re.match(r"training.output_dir: \d\d MB are needed .*, 1 MB are free", message), message


def test_a_mistake_in_rewards_py_is_one_line(tmp_path):
    for name in ("train_grpo.py", "config.yaml", "harness", "rewards.py"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    for text in ("def broken(:\n", "import no_such_package\n"):
        (tmp_path / "rewards.py").write_text((ROOT / "rewards.py").read_text(encoding="utf-8") + text, encoding="utf-8")
        result = subprocess.run([sys.executable, "train_grpo.py"], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert result.stderr.startswith("error: rewards.py")


def test_the_real_command_line_exits_with_2_and_one_line(policy):
    column = ["--config", "demo/config.yaml", "--prompts.column", "question"]
    command = [sys.executable, "train_grpo.py", *column, "--model.pretrained_model_name_or_path", policy]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: prompts.column: there is no column 'question'")
