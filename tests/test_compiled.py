"""Compiled decoding: the tokens of TRL's own generation, before and after the weights have moved."""

import shutil

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, CompileConfig
from trl import GRPOConfig, GRPOTrainer

from harness.trainer import Trainer

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


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_decoding_samples_the_same_tokens(policy, tmp_path):
    static = {"cache_implementation": "static", "generation_kwargs": {"max_cache_len": 64}}
    trainers = [
        kind(
            model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
            reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
            args=GRPOConfig(tmp_path, report_to="none", use_cpu=True, bf16=False, max_completion_length=24, **cache),
            train_dataset=Dataset.from_list([{"prompt": PROMPTS[0]}] * 8),
            processing_class=AutoTokenizer.from_pretrained(policy),
        )
        for kind, cache in ((GRPOTrainer, {}), (Trainer, static))
    ]
    compile_config = CompileConfig()
    compile_config._compile_all_devices = True  # on a GPU upstream compiles by itself
    trainers[1].generation_config.compile_config = compile_config
    theirs, ours = map(sampled, trainers)
    assert trainers[1].model._compiled_call._torchdynamo_orig_callable  # it was compiled, not skipped
    assert theirs == ours
    assert theirs[0] != theirs[1]
