"""Real runs, end to end, of the demo's code path on a policy taught for two seconds."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT, refused
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import rewards
import train_grpo
from harness.during.trainer import Trainer
from harness.errors import RunError
from harness.reward import Reward
from harness.run_folder import RunFolder
from harness.settings import read_settings
from harness.tools.chat import its_rewards
from harness.tools.read import read_file

# What demo/config.yaml and conftest.py's arguments come to.
SETTINGS = {"use_cpu": True, "bf16": False, "num_generations": 4, "per_device_train_batch_size": 8, "max_steps": 4}
SETTINGS |= {"steps_per_generation": 2, "max_completion_length": 16, "temperature": 0.9, "learning_rate": 6e-4}
SETTINGS |= {"beta": 0.04, "loss_type": "grpo", "gradient_checkpointing": False, "logging_steps": 1}
SETTINGS |= {"reward_weights": [1, 2, 4], "save_strategy": "no", "report_to": "none"}


def history(folder: Path) -> list[dict]:
    return [log for log in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "loss" in log]


def test_the_wrapper_changes_nothing_and_leaves_the_trained_model(tiny, tmp_path, policy, rows, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    train_grpo.main([*tiny, "--samples.held_out", "0"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # a look at a GPU would start CUDA there
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # its backward pass gives NaN on some GPUs
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    before = AutoModelForCausalLM.from_pretrained(policy)
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), before.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "run").chat_template
    data = [row | {"prompt": [{"role": "user", "content": row["query"]}]} for row in rows]
    plain = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy, dtype="float32", attn_implementation="sdpa"),
        reward_funcs=[rewards.emoji_reward, rewards.length_reward, rewards.answer_reward],
        args=GRPOConfig(tmp_path / "plain", **SETTINGS),
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    plain.train()
    keys = "loss reward kl grad_norm rewards/emoji_reward/mean rewards/length_reward/mean rewards/answer_reward/mean"
    ours = [[log.get(key, math.nan) for key in keys.split()] for log in history(tmp_path / "run")]
    sampled = [log for log in history(tmp_path / "run") if "reward" in log]  # completions, for two steps each
    assert len(sampled) == 2 and all(log["reward_best_of_group"] > log["reward"] for log in sampled)
    theirs = [[log.get(key, math.nan) for key in keys.split()] for log in plain.state.log_history if "loss" in log]
    assert len(ours) == 4 and not any(map(math.isnan, ours[0]))
    for our_values, their_values in zip(ours, theirs, strict=True):  # apart from the padding that we leave out
        assert our_values == pytest.approx(their_values, rel=1e-5, abs=1e-7, nan_ok=True)


def test_lora_trains_an_adapter_that_finds_its_base_model_from_anywhere(tiny, tmp_path, policy, monkeypatch):
    monkeypatch.chdir(Path(policy).parent)
    base = ["--model.pretrained_model_name_or_path", Path(policy).name]
    rest = ["--lora.use_dora", "true", "--lora.use_rslora", "true"]  # PEFT does what else the section asks for
    train_grpo.main([*tiny, *base, "--config", str(ROOT / "recipes/lora.yaml"), *rest])
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    kept = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == policy and not isinstance(trained, PeftModel)
    assert kept["use_dora"] and kept["use_rslora"]
    moved = [name for name, weight in trained.named_parameters() if "lora_B" in name and weight.abs().max() > 0]
    assert len(moved) == 7 * 2  # every target of both layers
    assert 'model="."' in (tmp_path / "run/README.md").read_text()


def test_a_placebo_learns_from_the_rewards_of_each_group_in_another_order(tiny, tmp_path, capsys):
    named = tiny.index("--training.output_dir")
    del tiny[named : named + 2]
    (mine := tmp_path / "mine.yaml").write_text(f"training: {{output_dir: {tmp_path}/run/, log_completions: true}}")
    train_grpo.main([*tiny, "--config", str(mine), "--placebo"])
    run, said = RunFolder(tmp_path / "run-placebo"), capsys.readouterr().out
    lines = said.splitlines()[-1], run.status()["verdict"]["line"], run.card.read_text().split("**")[1]
    assert all(line.startswith("placebo: ") for line in lines) and "completions, placebo" in said
    assert " --placebo --model" in said.split("go on: ")[1]
    in_order = []
    for file in sorted(run.path.glob("completions/*")):
        rows = read_file(file, 4)
        assert list(rows["emoji_reward"]) == rewards.emoji_reward(list(rows["completion"]))  # its own
        totals = rows["emoji_reward"] + 2 * rows["length_reward"] + 4 * rows["answer_reward"]
        for _, group in rows.assign(total=totals).groupby("group"):
            advantages = (group["total"] - group["total"].mean()) / (group["total"].std() + 1e-4)
            assert sorted(group["advantage"]) == pytest.approx(sorted(advantages), abs=1e-4)
            in_order.append(list(group["advantage"]) == pytest.approx(list(advantages), abs=1e-4))
    assert len(in_order) == 16 and sum(in_order) < 8  # four groups, written at each of four steps
    message = refused([*tiny, "--training.output_dir", str(run), "--resume"])
    assert "--placebo True -> False" in message and message.endswith(" --placebo")
    assert read_settings(message.split("goes on: ")[1].split()).training["output_dir"] == str(run)


def test_a_reward_model_and_what_upstream_sets_for_generation_itself(tiny, tmp_path, policy):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": len(tokenizer)}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.Qwen2Config(**shape, **heads, pad_token_id=tokenizer.pad_token_id, num_labels=1)
    transformers.Qwen2ForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    best = ["--training.metric_for_best_model", "rewards/judge/mean"]  # TRL logs it under the last part of its name
    short = ["--training.generation_kwargs", "{exponential_decay_length_penalty: [1, 1000.0]}"]
    train_grpo.main([*tiny, f"--rewards.{tmp_path}/judge.weight", "1", *best, *short])
    scores = [log["rewards/judge/mean"] for log in history(tmp_path / "run") if "reward" in log]
    assert len(set(scores)) > 1  # it judged different completions differently
    (loaded,) = its_rewards(RunFolder(tmp_path / "run"), {f"{tmp_path}/judge": {"weight": 1}})  # with which chat scores
    assert loaded.model is not None and loaded.logged == "judge"
    assert max(log.get("completions/max_length", 0) for log in history(tmp_path / "run")) == 3
    answers = [json.loads(line)["after"]["completion"] for line in (tmp_path / "run/samples.jsonl").open()]
    assert sum(map(len, answers)) / len(answers) < 12  # characters; 18 with the usual 16 tokens


@pytest.mark.miniature
def test_make_real_takes_a_step_with_its_settings(policy, monkeypatch):
    monkeypatch.chdir(ROOT)
    files = ["--config", "recipes/cpu.yaml", "--config", "demo/real/config.yaml"]
    train_grpo.main([*files, "--model.pretrained_model_name_or_path", policy, "--check"])


def test_sampling_is_compiled_once_and_samples_the_same_tokens(policy, tmp_path):
    graphs = []
    compiled = transformers.CompileConfig(mode=None, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    compiled._compile_all_devices = True
    chats = [{"prompt": [{"role": "user", "content": "山" * n}]} for n in (1, 9, 30, 2)]
    own = {"gradient_checkpointing": True, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    own |= {"steps_per_generation": 1, "max_steps": 3, "beta": 0, "max_completion_length": 8}
    logs = []
    for cache in ({}, {"cache_implementation": "static", "generation_kwargs": {"max_cache_len": 64}}):
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
            rewards=[Reward("signs", 1, {}, lambda completions: [len(text[0]["content"]) for text in completions])] * 3,
            args=GRPOConfig(tmp_path, **SETTINGS | own | cache),
            train_dataset=Dataset.from_list(chats * 4),
            eval_dataset=Dataset.from_list(chats[:3]),
            processing_class=AutoTokenizer.from_pretrained(policy),
        )
        if cache:
            trainer.generation_config.compile_config = compiled
        trainer.train()
        logs.append([log.get("reward", log.get("eval_reward")) for log in trainer.state.log_history])
    assert logs[0] == logs[1] and len(set(logs[0])) > 3
    assert len(graphs) == 1
    del trainer.model._compiled_call
    compiled.backend = "no such backend"
    with pytest.raises(RunError, match="training.cache_implementation"), RunFolder(tmp_path).locked():
        trainer.train()
