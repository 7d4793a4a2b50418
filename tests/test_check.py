"""Every mistake is one line in seconds: where, and what. A table of them, a step in miniature, and a few for real."""

import random
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from conftest import ROOT, refused
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, MusicgenConfig, Qwen3VLConfig, T5Config

import rewards
import train_grpo
from harness.errors import UserError


@pytest.fixture
def demo(policy, monkeypatch) -> list[str]:
    """The demo's command line, from the repository's root, with the tests' policy and --check."""
    monkeypatch.chdir(ROOT)
    return ["--config", "demo/config.yaml", "--model.pretrained_model_name_or_path", policy, "--check"]


MISTAKES = [  # arguments, what the message begins with, a word of it
    ("--model.attn_implementation nobody/kernel", "model.attn_implementation: ", "nobody/kernel"),
    ("--model.pretrained_model_name_or_path ./no", "model.pretrained_model_name_or_path: ", f"{ROOT}/no"),
    ("--model.pretrained_model_name_or_path my/model", "model.pretrained_model_name_or_path: ", "Hub"),
    ("--model.pretrained_model_name_or_path LICENSE", "model.pretrained_model_name_or_path: ", "LICENSE"),
    ("--lora.target_modules [q_prj]", "lora.target_modules: ", "q_proj"),
    ("--lora.target_modules [q_proj,v_prj]", "lora.target_modules: ", "v_prj"),
    ("--lora.init_lora_weights loftq --lora.r 4", "lora.init_lora_weights: ", "loftq_config"),
    ("--lora.init_lora_weights pissa", "lora.init_lora_weights: ", "reference"),  # beta is 0.04
    ("--lora {init_lora_weights:\u00a0olora}", "lora: ", "reference"),
    ("--lora.init_lora_weights pissa_niter_4 --training.beta 0", "lora.init_lora_weights: ", "niter"),
    ("--dataset.data_files no.json", "dataset.data_files: ", f"{ROOT}/no.json"),
    ("--dataset.data_files LICENSE", "dataset.data_files: ", "LICENSE:2: not JSON"),
    ("--dataset.split trian", "dataset.split: ", "train"),
    ("--prompts.max_length 3", "prompts.max_length: ", "no prompt is left"),
    ("--samples.questions [富士山の高さは?,'']", "samples.questions: ", "''"),
    ("--rewards.nobody/judge.weight 1", "rewards.nobody/judge: ", "Hub"),
    ("--training.generation_kwargs 512", "training.generation_kwargs: ", "dictionary"),
    ("--training.generation_kwargs {max_cache_length:\u00a09}", "training.generation_kwargs.max_cache_length: ", "unk"),
    ("--training.push_to_hub true", "training.push_to_hub: ", "hf auth login"),
    ("--training.generation_kwargs {temperature:\u00a01}", "training.generation_kwargs.temperature: ", "setting"),
    ("--training.generation_kwargs {max_length:\u00a09}", "training.generation_kwargs.max_length: ", "max_completion"),
    ("--training.metric_for_best_model eval_rewards/x/mean", "training.metric_for_best_model: ", "emoji_reward"),
    ("--training.metric_for_best_model loss", "training.metric_for_best_model: ", "canaries_hold"),
    ("--training.per_device_train_batch_size 9", "training.per_device_train_batch_size: ", "divisible"),
    ("--training.use_vllm true", "training.use_vllm: ", "make gpu"),
    ("--training.bf16 true --training.use_transformers_continuous_batching true", "training.", "bfloat16 for good"),
]  # fmt: skip


def test_mistakes(demo):
    wrong = []
    for arguments, place, word in MISTAKES:
        message = refused(demo + [part.replace("\u00a0", " ") for part in arguments.split(" ")])
        if not message.startswith(place) or word not in message:
            wrong.append((arguments, message))
    assert not wrong, "\n".join(map(str, wrong))


def outcome(arguments: list[str]) -> str | None:
    """The message that a UserError ends it with; anything else fails the test."""
    try:
        train_grpo.main(arguments)
    except UserError as error:
        return str(error)
    return None


IN_MINIATURE = [  # arguments, what the message begins with; None: it passes
    ("", None),
    ("--lora {target_modules:\u00a0[q_proj,\u00a0lm_head]}", "lora.target_modules: "),
    ("--lora {trainable_token_indices:\u00a0[5,\u00a06],\u00a0r:\u00a04}", "lora.trainable_token_indices: "),
    ("--lora {init_lora_weights:\u00a0pissa,\u00a0r:\u00a064} --training.beta 0", None),
    ("--lora {use_dora:\u00a0true} --model.dtype bfloat16 --training.gradient_checkpointing true", None),
    ("--model.pretrained_model_name_or_path GPT2 --lora.target_modules [c_attn]", None),
    ("--model.pretrained_model_name_or_path GPT2 --lora.target_modules [c_attn,lm_head]", "lora.target_modules: "),
    ("--training.use_vllm true --training.generation_kwargs {best_of:\u00a02}", None),
]  # fmt: skip


@pytest.mark.miniature
def test_what_a_step_in_miniature_refuses(demo, policy, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.before.check.check_weights", lambda plan: None)
    monkeypatch.setattr("harness.before.machine.find_spec", lambda name: True)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    wrong = []
    for arguments, place in IN_MINIATURE:
        parts = arguments.replace("GPT2", str(tmp_path / "gpt2")).split(" ") if arguments else []
        message = outcome(demo + [part.replace("\u00a0", " ") for part in parts])
        if (message is None) != (place is None) or not (message or "").startswith(place or ""):
            wrong.append((arguments, message))
    assert not wrong, "\n".join(map(str, wrong))


LORA = ["--lora", "{r: 4, target_modules: [q_proj]}"]
SETTINGS = [  # under `training`, words of the refusal or None, more arguments
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "training.lr_scheduler_type: One of min_lr or min_lr_rate"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": "{num_cycle: 2}"}, "lr_scheduler_kwargs.num_cycle"),
    ({"optim": "paged_adamw_8bit"}, "training.optim: You need to install `bitsandbytes`"),
    ({"optim": "sgd", "optim_args": "momentum=high"}, "training.optim_args: could not convert"),
    ({"use_liger_kernel": "true"}, "training.use_liger_kernel: "),
    ({"sync_ref_model": "true"}, "training.sync_ref_model: there is no reference model to sync", *LORA),
    ({"sync_ref_model": "true", "ref_model_sync_steps": 1}, None),
    ({"generation_kwargs": "{stop_strings: [。]}"}, "training.generation_kwargs.stop_strings: There are one or more"),
    ({"generation_kwargs": "{num_return_sequences: 2}"}, "training.generation_kwargs.num_return_sequences: "),
    ({"generation_kwargs": "{do_sample: false}"}, "training.generation_kwargs.do_sample: without sampling"),
    ({"generation_kwargs": "{bad_words_ids: [[99999999]]}"}, "training.generation_kwargs.bad_words_ids: The model"),
    ({"generation_kwargs": "{bad_words_ids: [[7]]}"}, None),
    ({"cache_implementation": "static"}, None),
    ({"activation_checkpointing": "true", "gradient_checkpointing_kwargs": "{foo: 1}"}, "_kwargs.foo: Unexpected"),
    ({"activation_checkpointing": "true", "activation_checkpointing_kwargs": "{every_n_layers: 2}"}, None),
    ({"save_strategy": "best"}, "training.save_strategy: best by what?"),
    ({"learning_rate": "1e-3"}, None, *LORA),
]  # fmt: skip


@pytest.mark.miniature
def test_what_check_passes_starts(tiny, tmp_path):
    wrong = []
    for settings, words, *more in SETTINGS:
        arguments = [part for key, value in settings.items() for part in (f"--training.{key}", str(value))]
        run = [*tiny, "--training.max_steps", "2", "--samples.held_out", "0", *arguments, *more]
        checked, started = outcome([*run, "--check"]), None
        if checked is None:
            started = outcome(run)
            shutil.rmtree(tmp_path / "run")
        if (checked and started) or started or bool(checked) != bool(words) or (words or "") not in (checked or ""):
            wrong.append((settings, checked, started))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.miniature
def test_each_reward_is_called_once_and_no_trace_is_left(tiny, tmp_path, monkeypatch):
    """By TRL in the miniature; by itself where there is none, and where its calls may cost."""
    calls = []

    def called(prompts, completions, completion_ids, trainer_state, log_metric, answer=None, max_emoji=4, **kwargs):
        calls.append([completion[-1]["content"] for completion in completions])
        assert len(prompts) == len(answer) == len(completion_ids) == 2 and answer[0] == answer[1]
        return [random.random() for _ in answer]

    monkeypatch.setattr(rewards, "emoji_reward", called)
    monkeypatch.setattr(rewards, "judge", called, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    train_grpo.main([*tiny, "--check"])
    assert before == [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    assert list((tmp_path / "tmp").iterdir()) == [] and not (tmp_path / "run").exists()
    ((empty, sampled),) = calls
    assert empty == "" and sampled != "Yes: 42 ✨"
    train_grpo.main([*tiny, "--check", "--rewards.judge.weight", "1"])
    assert len(calls) == 3 and calls[1] == ["", "Yes: 42 ✨"] != calls[2]
    monkeypatch.setattr("harness.before.check.has_miniature", lambda args: False)  # as with several processes
    train_grpo.main([*tiny, "--check"])
    assert len(calls) == 4 and calls[3] == ["", "Yes: 42 ✨"]


@pytest.mark.miniature
def test_a_reward_that_fails_in_miniature_is_named(demo, monkeypatch):
    for value, word in (({"a": 1}, "{'a': 1}"), ([1.0], "[1.0]"), (None, "None")):
        monkeypatch.setattr(rewards, "emoji_reward", lambda completions, max_emoji, value=value: value)
        message = refused(demo)
        assert message.startswith("rewards.emoji_reward: ") and word in message
    wrong = lambda completions, max_emoji, log_extra: log_extra("x", [1, "a"]) or [0.0, 1.0]  # noqa: E731
    monkeypatch.setattr(rewards, "emoji_reward", wrong)
    message = refused([*demo, "--training.log_completions=true", "--training.max_steps=2"])
    assert " rewards: " in message


def test_a_model_of_another_kind_is_named(policy, tiny, tmp_path):
    for config in (Qwen3VLConfig(), MusicgenConfig(), T5Config()):
        folder = tmp_path / config.model_type
        shutil.copytree(policy, folder, ignore=shutil.ignore_patterns("config.json"))
        config.save_pretrained(folder)
        message = refused([*tiny, "--model.pretrained_model_name_or_path", str(folder), "--check"])
        assert message.startswith(f"model.pretrained_model_name_or_path: {config.model_type}: "), message
        assert "GPT2Config" not in message


def test_too_little_disk_is_reported_with_both_figures(tiny, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    message = refused([*tiny, "--check"])
    assert re.match(r"training.output_dir: 1 MB are free, \d\d MB ", message), message


def test_the_real_command_line_exits_with_2_and_one_line(tmp_path):
    for name in ("train_grpo.py", "config.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "harness", tmp_path / "harness")
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / "rewards.py").write_text("import no_such_package\n", encoding="utf-8")
    command = [sys.executable, "train_grpo.py", "--config", "demo/config.yaml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: rewards.py")
