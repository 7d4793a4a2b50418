"""Merging real tiny LoRA runs: the merged model is the trained one, and where it is not, nothing is left of it."""

import io
import json
import shutil

import pytest
import torch
from conftest import refused, tiny_arguments
from peft import LoraModel, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_grpo
from harness.errors import RunError, UserError
from harness.tools import chat, compare, merge

LORA = ["--lora.r=4", "--lora.task_type=CAUSAL_LM", "--lora.target_modules=[q_proj,v_proj]"]
LORA += ["--training.learning_rate=1e-2", "--samples.held_out=0"]


@pytest.fixture(scope="module")
def runs(policy, tmp_path_factory):
    """By the dtype of the base model; `tied`: of its embedding, which is its output layer too."""
    more = {"float32": ["--model.dtype=float32"], "bfloat16": ["--model.dtype=bfloat16"]}
    more["pissa"] = [*more["float32"], "--lora.init_lora_weights=pissa", "--training.beta=0"]
    more["tied"] = ["--lora.target_modules=[embed_tokens]", "--training.max_steps=2"]
    folders = {name: tmp_path_factory.mktemp(name) for name in more}
    for name, folder in folders.items():
        train_grpo.main([*tiny_arguments(policy, folder), *LORA, *more[name]])
    return {name: folder / "run" for name, folder in folders.items()}


MERGED = [("float32", "float32", 0, 0.01), ("bfloat16", "bfloat16", 0.1, 5), ("pissa", "float32", 0, 0.1)]


@pytest.mark.parametrize(("name", "dtype", "least", "most"), MERGED)
def test_the_merged_folder_answers_alike(name, dtype, least, most, runs, policy, tmp_path, capfd, monkeypatch):
    run = shutil.copytree(runs[name], tmp_path / "run")
    message = refused(tiny_arguments(f"{run}/", tmp_path / "more"))  # no run starts from an adapter
    merge.main([message.split("harness merge ")[1].split(";")[0]])
    out, err = capfd.readouterr()
    folder = tmp_path / "run-merged"
    assert err == "" and out.startswith(f"{folder}: merged in {dtype}; ") and (folder / "README.md").exists()
    assert least <= float(out.split("off by ")[1].split("%")[0]) < most
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run-merged"}  # and nothing temporary
    assert {str(weight.dtype) for weight in load_file(folder / "model.safetensors").values()} == {f"torch.{dtype}"}
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert str(model.dtype) == f"torch.{dtype}" and not list(folder.glob("adapter*"))
    base = AutoModelForCausalLM.from_pretrained(policy, dtype=dtype)
    prompt = [{"role": "user", "content": json.loads((run / "samples.jsonl").open().readline())["question"]}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        merged, untrained = model(ids).logits, base(ids).logits
        adapter = PeftModel.from_pretrained(base, run)(ids).logits
    assert (merged - adapter).norm() < 0.1 * (untrained - adapter).norm()
    monkeypatch.setattr("sys.stdin", io.StringIO("富士山の高さは?\n"))
    chat.main([str(folder)])
    compare.main([str(run), str(folder)])
    out = capfd.readouterr().out.replace("\n", "")
    assert "富士山の高さは?" in out and out.count(f"{folder}: no verdict") == 1
    with pytest.raises(UserError, match=f"{folder}: is there already"):
        merge.main([str(run)])


def test_what_would_not_be_the_trained_model_is_refused(runs, tmp_path, monkeypatch):
    def not_merged(run, word: str) -> None:
        with pytest.raises(RunError, match=f"{run}: .*{word}"):
            merge.main([str(run), "-o", str(tmp_path / "merged")])
        assert not (tmp_path / "merged").exists() and not list(tmp_path.glob("tmp*"))

    for factor, word in ((0.01, "bfloat16: .* 25% allowed"), (0, "changes nothing")):  # as if it had learned less
        weak = shutil.copytree(runs["bfloat16"], tmp_path / "weak", dirs_exist_ok=True)
        weights = load_file(weak / "adapter_model.safetensors")
        less = {name: weight * factor if "lora_B" in name else weight for name, weight in weights.items()}
        save_file(less, weak / "adapter_model.safetensors")
        not_merged(weak, word)
    not_merged(runs["tied"], "float32")  # merged into the one, the adapter is in both
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **_: self.unload())  # merges nothing
    not_merged(runs["float32"], "100%")


def test_what_is_compared_is_a_question_as_the_run_had_it(runs, tmp_path):
    copy = shutil.copytree(runs["float32"], tmp_path / "run")
    (copy / "samples.jsonl").write_text("")  # then it is another question
    settings = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(settings.replace("\ntraining:", "\ntraining:\n  chat_template_kwargs: {a: 1}"))
    template = copy / "chat_template.jinja"
    template.write_text("{% if a != 1 %}{{ raise_exception('no a') }}{% endif %}" + template.read_text())
    merge.main([str(copy), "-o", str(tmp_path / "new/merged")])
    assert (tmp_path / "new/merged/model.safetensors").exists()


def test_no_lora_run_is_named_and_no_run_goes_into_its_own_models_folder(runs, policy, tmp_path):
    with pytest.raises(UserError, match="config.yaml: missing"):
        merge.main([str(tmp_path)])
    full = shutil.copytree(policy, tmp_path / "run")  # a whole model, where a LoRA run has its adapter
    with pytest.raises(UserError, match="is not empty"):
        train_grpo.main([*tiny_arguments(f"{full}/", tmp_path), "--check"])
    for name in ("config.yaml", "trainer_state.json"):
        shutil.copy(runs["float32"] / name, full)
    with pytest.raises(UserError, match="run: no LoRA run"):
        merge.main([str(full)])
