"""machine: what this machine, or the weights of this model, cannot do is refused before anything is loaded."""

import json
import shutil

import pytest
import torch
from conftest import ROOT, refused
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import train_grpo
from harness.before.machine import missing_compiler

GPU = {"is_available": True, "device_count": 1, "is_bf16_supported": True, "get_device_name": "Tesla T4"}
MACHINES = [
    ({"is_available": False}, ["no CUDA GPU", "make demo"]),
    ({"device_count": 4}, ["4 GPUs", "harness launch --num_processes 4"]),
    ({"is_bf16_supported": False}, ["training.bf16: Tesla T4", "training.fp16: true"]),
]


def test_machines_that_cannot(monkeypatch):
    """The GPU is pretended: none is here."""
    for gpu, words in MACHINES:
        for name, value in {**GPU, **gpu}.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
        message = refused([])
        assert all(word in message for word in words), message


def test_what_low_bits_need_is_checked(tiny, monkeypatch):
    quantized = ["--model.quantization_config", "{load_in_4bit: true}", "--lora.r", "8"]
    message = refused([*tiny, *quantized, "--check"])
    assert message.startswith("model.quantization_config: ") and "bitsandbytes" in message
    monkeypatch.setenv("PATH", "")
    train_grpo.main([*tiny, "--training.optim", "adamw_torch_fused", "--check"])  # torch's own, which compiles nothing
    message = refused([*tiny, "--training.optim", "adamw_torch_8bit", "--check"])
    assert message.startswith("training.optim: ") and "no C compiler" in message


def test_qlora_passes_the_check_without_a_gpu(policy, capsys):
    source = ["--dataset.path", str(ROOT / "demo/questions.jsonl"), "--training.max_completion_length", "128"]
    recipe = ["--config", str(ROOT / "recipes/qlora.yaml"), "--model.pretrained_model_name_or_path", policy]
    train_grpo.main([*recipe, *source, "--check"])
    plan = capsys.readouterr().out
    assert plan.startswith("machine: no CUDA GPU here") and "trained by LoRA" in plan and "fits a GPU of" in plan


def test_a_gpu_machine_without_a_compiler_or_pythons_header_is_told_before_the_model_is_loaded(tmp_path, monkeypatch):
    """TRL's kernels are compiled at the first step; this machine has no Triton, which an empty package stands for."""
    for name, value in GPU.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("CC", raising=False)
    (tools := tmp_path / "bin").mkdir()
    (include := tmp_path / "include").mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(include)})
    message = refused([])
    assert message.startswith("machine: Triton") and "C compiler" in message
    (tools / "clang").touch(0o755)
    assert f"{include}/Python.h" in refused([])
    (include / "Python.h").touch()
    assert missing_compiler() == ""
    monkeypatch.setenv("CC", "gcc-14")
    assert "gcc-14" in missing_compiler()


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def a_gguf(folder):
    (folder / "model.safetensors").rename(folder / "model.gguf")


def a_gguf_alone(folder):
    a_gguf(folder)
    (folder / "config.json").unlink()


def a_part_missing(folder):
    no_weights(folder)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def quantized(folder):
    config = json.loads((folder / "config.json").read_text())
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


def fewer_embeddings(folder):
    config = AutoConfig.from_pretrained(folder)
    config.vocab_size = len(AutoTokenizer.from_pretrained(folder)) // 2
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def neither_pad_nor_eos(folder):
    file = folder / "tokenizer_config.json"
    known = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    file.write_text(json.dumps(known | {"pad_token": None, "eos_token": None}))


def an_adapter(folder):
    (folder / "adapter_config.json").touch()


def untouched(folder):
    pass


HALF = ["--model.dtype", "float16", "--training.fp16", "true", "--training.bf16", "false"]
WITH_LORA = ["--lora", "{r: 4, target_modules: [q_proj]}"]
NAME = "model.pretrained_model_name_or_path: "
WEIGHTS = [  # what is done to the model's folder, settings, the key and a word; None: it passes
    (no_weights, [], NAME, "no weights"),
    (a_gguf, [], NAME, "safetensors"),
    (a_gguf_alone, [], NAME, "GGUF"),
    (a_part_missing, [], NAME, "model-00001-of-00002.safetensors"),
    (quantized, [], NAME, "quantized"),
    (quantized, WITH_LORA, NAME, "bitsandbytes"),
    (fewer_embeddings, [], NAME, "embeddings"),
    (neither_pad_nor_eos, [], NAME, "eos"),
    (an_adapter, [], NAME, "harness merge"),
    (untouched, HALF, "model.dtype: ", "fp16"),
    (untouched, [*HALF, *WITH_LORA], None, None),
]


@pytest.mark.parametrize(("spoil", "more", "key", "word"), WEIGHTS)
def test_weights_that_cannot_be_trained_are_refused_before_they_are_loaded(
    spoil, more, key, word, tiny, policy, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(policy, folder)
    spoil(folder)
    arguments = [*tiny, "--model.pretrained_model_name_or_path", str(folder), *more, "--check"]
    if key is None:
        train_grpo.main(arguments)
    else:
        message = refused(arguments)
        assert message.startswith(key) and word in message
    assert torch.get_default_dtype() == torch.float32
