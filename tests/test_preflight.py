"""Every mistake is one line in seconds: where, what, and what to do. One table a group, in-process; a few for real."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT

import rewards
import train_grpo
from harness.exits import UserError
from harness.plan import footprint
from harness.preflight import check_generation_kwargs, training_arguments
from harness.settings import read_settings


def refused(arguments: list[str]) -> str:
    with pytest.raises(UserError) as error:
        train_grpo.main(arguments)
    message = str(error.value)
    assert "\n" not in message and ": " in message
    return message


def every_key() -> list[tuple[str, ...]]:
    paths = []
    for file in [ROOT / "config.yaml", ROOT / "demo/config.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))]:
        for section, values in yaml.safe_load(file.read_text()).items():
            for key in [(section,), *((section, key) for key in values or ())]:
                paths += [key] if key not in paths else []
            if section == "rewards":
                paths += [(section, name, key) for name, entry in values.items() for key in entry]
    return list(dict.fromkeys(paths))


def nested(path: tuple[str, ...], value) -> dict:
    for key in reversed(path):
        value = {key: value}
    return value


@pytest.mark.parametrize("path", every_key(), ids=".".join)
def test_every_key_misspelt_or_of_the_wrong_type_is_named(path, tmp_path):
    base = ["--config", str(ROOT / "recipes/lora.yaml"), "--config", str(ROOT / "demo/config.yaml")]
    overlay = tmp_path / "mistake.yaml"
    *parents, key = path

    overlay.write_text(yaml.safe_dump(nested((*parents, key + "s"), {"weight": 1})))
    message = refused([*base, "--config", str(overlay)])
    assert message.startswith(".".join(path) + "s: ") and f"did you mean {key}?" in message

    wrong = 5 if len(path) == 1 or path[-1].endswith("_reward") else {"wrong": "type"}
    if path != ("dataset", "data_files"):  # which may be a mapping
        overlay.write_text(yaml.safe_dump(nested(path, wrong)))
        assert refused([*base, "--config", str(overlay)]).startswith(".".join(path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "nowhere.yaml"], ["nowhere.yaml: No such file", "--config"]),
        (["--config", "LICENSE"], ["LICENSE: not"]),
        (["--config", "demo/questions.jsonl"], ["demo/questions.jsonl: not"]),
        (["--training.learn", "1"], ["training.learn: unknown", "learning_rate"]),
        (["--train.seed", "1"], ["train: unknown", "training"]),
        (["--training.num_generations", "8.5"], ["training.num_generations: expected int", "8.5"]),
        (["--training.num_generations", "[8]"], ["training.num_generations: expected int"]),
        (["--training.learning_rate", "fast"], ["training.learning_rate: expected float", "fast"]),
        (["--training.max_prompt_length", "256"], ["training.max_prompt_length: ", "prompts.max_length"]),
        (["--training.save_strategy", "sometimes"], ["training: ", "sometimes"]),
        (["--training.loss_scale"], ["training.loss_scale: has no value"]),
        (["--training.num_generations", "1"], ["training.num_generations: 1", "at least 2"]),
        (["--training.steps_per_generation", "0"], ["training.steps_per_generation: 0", "at least 1"]),
        (["--training.temperature", "0"], ["training.temperature: 0", "above 0"]),
        (["--training.learning_rate=-1"], ["training.learning_rate: -1", "above 0"]),
        (["--prompts.limit", "0"], ["prompts.limit: 0"]),
        (["--samples.held_out=-1"], ["samples.held_out: -1"]),
        (["--training.loss_type", "drgrpo"], ["training.loss_type: ", "did you mean dr_grpo?"]),
        (["--training.generation_kwargs", "512"], ["training.generation_kwargs: expected a mapping", "512"]),
        (
            ["--training.generation_kwargs", "{temperature: 1}"],
            ["generation_kwargs.temperature: ", "training.temperature"],
        ),
        (["--training.generation_kwargs", "{max_new_tokens: 9}"], ["max_completion_length"]),
        (["--training.generation_kwargs", "{max_cache_length: 9}"], ["max_cache_length: unknown"]),
        (["--training.generation_kwargs", "{compile_config: {mode: x}}"], ["generation_kwargs: ", "CompileConfig"]),
        (["--training.cache_implementation", "statik"], ["training.cache_implementation: ", "statik"]),
        (
            ["--training.cache_implementation", "static", "--training.bf16", "true", "--model.dtype", "null"],
            ["model.dtype: bfloat16"],
        ),
        (["--training.report_to", "wandbx"], ["training.report_to: ", "wandbx"]),
        (["--training.report_to", "wandb"], ["training.report_to: ", "wandb"]),
        (["--training.remove_unused_columns", "true"], ["training.remove_unused_columns: "]),
        (["--training.resume_from_checkpoint", "x"], ["training.resume_from_checkpoint: ", "--resume"]),
        (["--training.push_to_hub", "true"], ["training.push_to_hub: ", "hf auth login"]),
        (["--training.output_dir", ""], ["training.output_dir: is empty"]),
        (["--training.output_dir", "LICENSE/x"], ["training.output_dir: LICENSE/x cannot be written"]),
        (
            ["--training.cache_implementation", "static", "--training.bf16", "true"],
            ["training.cache_implementation: static", "bfloat16"],
        ),
        (["--model.attn_implementation", "nobody/kernel"], ["the kernel nobody/kernel cannot be had", "sdpa"]),
        (["--model.attn_implementation", "flash"], ["model.attn_implementation: unknown 'flash'"]),
        (["--rewards.nobody/judge.weight", "1"], ["rewards.nobody/judge: ", "Hub cannot be reached"]),
        (["--samples.held_out", "286"], ["training: 5 prompts", "samples.held_out"]),
        (["--training.eval_strategy", "steps", "--samples.held_out", "0"], ["training.eval_strategy: "]),
        (["--model.dtype", "bf16"], ["model.dtype: ", "bfloat16", "bf16"]),
        (["--lora.r", "many"], ["lora.r: expected int", "many"]),
        (["--lora.bias", "some"], ["lora.bias: expected 'none', 'all'", "some"]),
        (["--lora.target_modules", "[q_prj]"], ["lora: ", "q_prj"]),
        (
            ["--rewards.emoji_rewrd.weight", "1"],
            ["rewards.emoji_rewrd: ", "did you mean emoji_reward?", "length_reward"],
        ),
        (["--rewards.length_reward.goal", "9"], ["rewards.length_reward.goal: unknown"]),
        (["--rewards.length_reward.weight", ".inf"], ["rewards.length_reward.weight: ", "finite"]),
        (["--rewards.length_reward", "3"], ["rewards.length_reward: expected a mapping"]),
        (["--rewards", "null"], ["rewards: expected a mapping"]),
        ([f"--rewards.{name}.weight=0" for name in rewards.all_rewards()], ["rewards: none has a weight"]),
        (["surprise"], ["surprise: not an option"]),
        (["--model.pretrained_model_name_or_path", "./nowhere"], ["model.pretrained_model_name_or_path: no folder"]),
        (["--model.pretrained_model_name_or_path", "nobody/nothing"], ["the Hub cannot be reached", "nobody/nothing"]),
        (
            ["--dataset.path", "nobody/nothing", "--dataset.data_files", "null"],
            ["dataset.path: ", "Hub cannot be reached"],
        ),
        (["--dataset.data_files", "nowhere.json"], ["dataset.data_files: no folder or file nowhere.json"]),
        (["--dataset.data_files", "LICENSE"], ["dataset.data_files: LICENSE does not load"]),
        (["--dataset.split", "trian"], ["dataset.split: ", "train"]),
        (["--prompts.column", "question"], ["prompts.column: 'question' is no column", "did you mean query?"]),
        (["--prompts.max_length", "3"], ["prompts.max_length: no prompt is left", "raise it"]),
        (["--prompts.limit", "14"], ["training: 6 prompts", "8"]),
        (["--training.max_completion_length", "500"], ["training.max_completion_length: ", "context of 512"]),
        (
            ["--training.per_device_train_batch_size", "9", "--training.steps_per_generation", "1"],
            ["training.per_device_train_batch_size: 9", "use 8 or 16"],
        ),
        (["--training.generation_batch_size", "65", "--training.steps_per_generation", "null"], ["use 64 or 72"]),
        (
            ["--training.eval_strategy", "steps", "--training.per_device_eval_batch_size", "4"],
            ["training.per_device_eval_batch_size: 4", "use 8"],
        ),
        (["--training.use_vllm", "true"], ["training.use_vllm: ", "make gpu"]),
    ],
    ids=lambda value: "-".join(value)[:60] if isinstance(value, list) else None,
)
def test_mistakes(arguments, words, policy, monkeypatch):
    monkeypatch.chdir(ROOT)
    base = ["--config", "demo/config.yaml", "--model.pretrained_model_name_or_path", policy, "--check"]
    message = refused(base + arguments)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("bad", [None, "", "   "])
def test_empty_questions_are_counted_and_dropped_only_on_request(bad, tiny, rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({**row, "query": bad if i in (3, 7) else row["query"]}) + "\n" for i, row in enumerate(rows))
    )
    arguments = [*tiny, "--dataset.data_files", str(path), "--check"]
    message = refused(arguments)
    assert "2 of 291 questions" in message and "rows 3, 7" in message and "drop_empty" in message
    train_grpo.main([*arguments, "--prompts.drop_empty", "true"])


def test_a_tokenizer_without_chat_template_is_refused(policy, tiny, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(policy, folder)
    (folder / "chat_template.jinja").unlink()
    assert "no chat template" in refused([*tiny, "--model.pretrained_model_name_or_path", str(folder)])


def test_too_little_disk_is_told_with_both_figures(tiny, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    message = refused([*tiny, "--check"])
    assert re.match(r"training.output_dir: \d\d MB are needed .*, 1 MB are free", message), message


def test_a_file_cannot_trade_a_section_for_a_number(tmp_path):
    (tmp_path / "bad.yaml").write_text("training: 3\n")
    assert refused(["--config", str(tmp_path / "bad.yaml"), "--training.seed", "1"]).startswith(
        "training: expected a map"
    )


@pytest.mark.parametrize("answer", [None, ""])
def test_rows_without_an_answer_stop_nothing(answer, tiny, rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({**row, "answer": answer if i % 2 else row["answer"]}) + "\n" for i, row in enumerate(rows))
    )
    train_grpo.main([*tiny, "--dataset.data_files", str(path)])


def test_a_reward_whose_column_is_missing_names_it(tiny, rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"query": row["query"], "tools": [1]}) + "\n" for row in rows))
    message = refused([*tiny, "--dataset.data_files", str(path), "--check"])
    assert message.startswith("rewards.answer_reward: needs the column answer") and "null" in message
    train_grpo.main([*tiny, "--dataset.data_files", str(path), "--rewards.answer_reward", "null"])


@pytest.mark.parametrize("text", ["def broken(:\n", "import no_such_package\n"])
def test_a_mistake_in_rewards_py_is_one_line(text, tmp_path):
    for name in ("train_grpo.py", "config.yaml", "harness", "rewards.py"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    with (tmp_path / "rewards.py").open("a") as file:
        file.write(text)
    result = subprocess.run([sys.executable, "train_grpo.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.startswith("error: rewards.py") and "mend it" in result.stderr


def test_flash_attention_falls_back_in_words(tiny, capsys):
    train_grpo.main([*tiny, "--model.attn_implementation", "flash_attention_2", "--check"])
    assert "sdpa (not flash_attention_2: " in " ".join(capsys.readouterr().out.split())


def test_lora_without_peft_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert refused(["--config", str(ROOT / "recipes/lora.yaml")]).startswith("lora: peft is not installed")


GPU = {"is_available": True, "device_count": 1, "is_bf16_supported": True, "get_device_name": "Tesla T4"}


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        ({"is_available": False}, ["no CUDA GPU", "make demo"]),
        ({"device_count": 4}, ["4 GPUs", "accelerate launch --num_processes 4"]),
        ({"is_bf16_supported": False}, ["training.bf16: Tesla T4", "training.fp16: true"]),
    ],
)
def test_machines_that_cannot(gpu, words, monkeypatch):
    """The GPU is pretended: none is here."""
    for name, value in {**GPU, **gpu}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    message = refused([])
    assert all(word in message for word in words), message


def test_the_plan(tiny, capsys):
    train_grpo.main([*tiny, "--check"])
    plan = " ".join(capsys.readouterr().out.split())
    for words in (
        "1,030,560 parameters, all trained, float32",
        "283 to train on, 8 held out, 0 dropped (too long)",
        "<|im_start|>user⏎",
        "2 prompts x 4 = 8 completions",
        "4 optimizer steps, 2 generation calls of 16",
        "at most 512 generated tokens",
        "2 x length_reward (target_length 30, alpha 0.15)",
        "emoji_reward: 0.00 on average (0 to 0); warning: flat",
    ):
        assert words in plan, plan


def test_the_footprint_of_the_articles_model():
    """TinySwallow's shape on the meta device: 1.54 B parameters, about 15 GB for four bfloat16 copies of five."""
    from transformers import Qwen2Config
    from trl import GRPOConfig

    settings = read_settings([], {})
    config = Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True,
    )  # fmt: skip
    arguments = GRPOConfig(**{**settings.training, "bf16": False, "use_cpu": True})
    size = footprint(settings, config, arguments, None)
    assert size.parameters == size.trainable == 1_543_714_304
    held = sum(size.memory[name] for name in ("weights", "gradients", "optimizer", "reference model"))
    assert held == 5 * 2 * size.parameters
    assert size.disk == 2 * size.parameters * (1 + 3 * 3)  # the model; two checkpoints kept and one being written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--training.learnin_rate", "1"], "error: training.learnin_rate: unknown, did you mean learning_rate?"),
        (["--config", "demo/config.yaml", "--prompts.column", "question"], "error: prompts.column: 'question'"),
        ([], "error: machine: no CUDA GPU found; `make demo`"),
    ],
)
def test_the_real_command_line_exits_with_2_and_one_line(arguments, words, policy):
    command = [sys.executable, "train_grpo.py", *arguments, "--model.pretrained_model_name_or_path", policy]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(words)


def test_help_fits_on_one_screen():
    result = subprocess.run([sys.executable, "train_grpo.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and len(result.stdout.splitlines()) <= 30


def test_a_static_cache_has_room_for_the_longest_prompt_and_completion():
    settings = read_settings([str(ROOT / "demo/config.yaml")], {"training.cache_implementation": "static"})
    assert training_arguments(settings)[0].generation_kwargs == {"max_cache_len": 256 + 64}


def test_a_cache_of_its_own_is_not_vllms():
    with pytest.raises(UserError, match="cache_implementation: vLLM"):
        check_generation_kwargs({"use_vllm": True, "cache_implementation": "static"})
