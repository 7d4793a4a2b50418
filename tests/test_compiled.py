"""Compiled decoding: the tokens of TRL's own generation, whatever the weights are, from a graph compiled once."""

import shutil

import pytest
import torch
from datasets import Dataset
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, AutoTokenizer, CompileConfig
from trl import GRPOConfig, GRPOTrainer

from harness.trainer import Trainer

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="on a CPU torch.compile needs a C++ compiler")
STATIC = {"cache_implementation": "static", "generation_kwargs": {"max_cache_len": 64}}
PROMPTS = ["富士山の高さは?", "日本の首都は?", "千葉県の県庁所在地はどこですか?"]


def sampled(trainer: GRPOTrainer) -> list[list[list[int]]]:
    """Completions of PROMPTS by the policy as it is, and by the same policy with other weights."""
    ids = trainer.processing_class(PROMPTS * 2)["input_ids"]
    calls = []
    for _ in range(2):
        torch.manual_seed(0)
        completions = trainer._generate_single_turn(ids, None, {}, 1)[0]
        calls.append([list(map(int, completion)) for completion in completions])
        with torch.no_grad():
            for weight in trainer.model.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return calls


def made(kind: type[GRPOTrainer], policy: str, folder, **settings) -> GRPOTrainer:
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
        reward_funcs=[lambda completions, **_: [float(len(c[0]["content"]) % 7) for c in completions]],
        args=GRPOConfig(folder, report_to="none", use_cpu=True, bf16=False, max_completion_length=24, **settings),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS * 4]),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    if kind is Trainer:
        compile_config = CompileConfig()
        compile_config._compile_all_devices = True  # on a GPU upstream compiles by itself
        trainer.generation_config.compile_config = compile_config
    return trainer


def test_the_same_tokens(policy, tmp_path):
    theirs = sampled(made(GRPOTrainer, policy, tmp_path))
    trainer = made(Trainer, policy, tmp_path, **STATIC)
    assert sampled(trainer) == theirs
    assert theirs[0] != theirs[1]
    assert hasattr(trainer.model, "_compiled_call")  # it was compiled, not skipped


def test_one_graph_for_all_steps(policy, tmp_path):
    torch._dynamo.reset()
    counters.clear()
    trainer = made(Trainer, policy, tmp_path, gradient_checkpointing=True, max_steps=3, save_strategy="no", **STATIC)
    trainer.train()
    assert counters["stats"]["unique_graphs"] == 1
    assert len(trainer.model.get_input_embeddings()._forward_hooks) == 1
