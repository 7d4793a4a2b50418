"""machine, policy: what this machine, or this model, cannot do is refused before anything is loaded, and why."""

import json
import shutil
from pathlib import Path

import torch
from conftest import ROOT, refused
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, MambaConfig

import train_grpo
from harness.before.machine import missing_compiler
from harness.before.policy import loading_problem, usable_attention

GPU = {"is_available": True, "device_count": 1, "is_bf16_supported": True, "get_device_name": "Tesla T4"}
MACHINES = [
    ({"is_available": False}, ["no CUDA GPU", "make demo"]),
    ({"device_count": 4}, ["4 GPUs", "harness launch --num_processes 4"]),
    ({"is_bf16_supported": False}, ["training.bf16: Tesla T4", "training.fp16: true"]),
]


def test_machines_that_cannot(monkeypatch):
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
    assert plan.startswith("machine: no CUDA GPU here") and "trained with LoRA" in plan and "GB GPU" in plan


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


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def with_fewer_embeddings(folder: Path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, vocab_size=100)).save_pretrained(folder)


def with_other_names(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({f"foo.{name}": weight for name, weight in load_file(file).items()}, file, {"format": "pt"})


def without_attention(folder: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "eos_token_id": 1, "state_size": 4}
    config = MambaConfig(**shape, vocab_size=AutoConfig.from_pretrained(folder).vocab_size)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


PART = json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}})
BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}
OWN_CODE = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
NO_ENDS = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": None, "eos_token": None}
DAMAGES = {  # what is done to the model's folder
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "half the weights": lambda folder: (folder / "model.safetensors").write_bytes(b"half of it"),
    "wider": lambda folder: edit(folder / "config.json", intermediate_size=1024),
    "other names": with_other_names,
    "a layer less": lambda folder: edit(folder / "config.json", num_hidden_layers=1, layer_types=None),
    "another class": lambda folder: edit(folder / "config.json", architectures=["Qwen2ForSequenceClassification"]),
    "returns two": lambda folder: edit(folder / "generation_config.json", num_return_sequences=2),
    "no JSON": lambda folder: (folder / "generation_config.json").write_text("{"),
    "its own sampling": lambda folder: edit(folder / "generation_config.json", min_new_tokens=3, top_k=7),
    "a part missing": lambda folder: (folder / "model.safetensors.index.json").write_text(PART),
    "a GGUF": lambda folder: (folder / "model.safetensors").rename(folder / "model.gguf"),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "quantized": lambda folder: edit(folder / "config.json", quantization_config=BITS),
    "its own code": lambda folder: edit(folder / "config.json", **OWN_CODE),
    "no attention": without_attention,
    "fewer embeddings": with_fewer_embeddings,
    "neither pad nor eos": lambda folder: edit(folder / "tokenizer_config.json", **NO_ENDS),
    "no template": lambda folder: (folder / "chat_template.jinja").unlink(),
}
HALF = ["--model.dtype", "float16", "--training.fp16", "true", "--training.bf16", "false"]
WITH_LORA = ["--lora", "{r: 4, target_modules: [q_proj]}"]
NAME = "model.pretrained_model_name_or_path: "
WEIGHTS = [  # damages, settings, the key and a word; None: it passes
    (["no weights"], [], NAME, "no file named model.safetensors"),
    (["half the weights"], [], NAME, "SafetensorError"),
    (["wider"], [], NAME, "mismatch"),
    (["other names"], [], NAME, "missing_keys: ['lm_head"),
    (["a layer less"], [], None, "unexpected_keys: ['model.layers.1"),
    (["another class"], [], NAME, "score"),
    (["returns two"], [], NAME, "num_return_sequences"),
    (["no JSON"], [], NAME, "generation_config.json"),
    (["its own sampling"], [], None, "min_new_tokens 3"),
    (["a GGUF", "no config"], [], NAME, "GGUF"),
    (["no weights", "a part missing"], [], NAME, "model-00001-of-00002.safetensors"),
    (["quantized"], [], NAME, "quantized"),
    (["quantized"], WITH_LORA, NAME, "bitsandbytes"),
    (["its own code"], [], NAME, "custom code which must be executed"),
    (["no attention"], ["--model.attn_implementation", "null"], None, ""),
    (["fewer embeddings"], [], NAME, "embeddings"),
    (["neither pad nor eos"], [], NAME, "eos"),
    (["no template"], [], NAME, "no chat template"),
    ([], HALF, "model.dtype: ", "fp16"),
    ([], [*HALF, *WITH_LORA], None, ""),
]


def test_weights_that_cannot_be_trained_are_refused_before_they_are_loaded(tiny, policy, tmp_path, capsys):
    for i, (damages, more, key, word) in enumerate(WEIGHTS):
        folder = Path(shutil.copytree(policy, tmp_path / str(i)))
        for damage in damages:
            DAMAGES[damage](folder)
        arguments = [*tiny, "--model.pretrained_model_name_or_path", str(folder), *more, "--check"]
        if key is None:
            train_grpo.main(arguments)
            assert word in (said := capsys.readouterr().out) and "top_k" not in said
        else:
            message = refused(arguments)
            assert message.startswith(key) and word in message, message
        assert torch.get_default_dtype() == torch.float32


CAUSES = [  # the model's name, what from_pretrained raised, a word of the message
    ("org/model", GatedRepoError.__new__(GatedRepoError), "hf auth login"),
    ("org/model", RepositoryNotFoundError.__new__(RepositoryNotFoundError), "Hub"),
    ("org/model", PermissionError(13, "Permission denied", "/cache"), "HF_HOME"),
    ("model.gguf", ValueError("not JSON"), "GGUF"),
]


def test_why_a_model_does_not_load_is_said_in_one_line():
    for name, cause, word in CAUSES:
        error = OSError("We could not\nload it.")
        error.__cause__ = cause
        message = loading_problem(name, error)
        assert word in message and "\n" not in message


def test_flash_attention_is_used_where_it_loads_and_else_said_to_be_left_out(monkeypatch):
    assert [usable_attention(name) for name in (None, "eager")] == [(None, ""), ("eager", "")]
    found, fallback = usable_attention("flash_attention_2")
    assert found is None and "no CUDA GPU" in fallback
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "ImportError" in usable_attention("flash_attention_2")[1]
    monkeypatch.setattr("harness.before.policy.lazy_import_flash_attention", lambda name: None)
    assert usable_attention("flash_attention_2") == ("flash_attention_2", "")
