"""Merging real tiny LoRA runs: the merged model is the trained one, and where it is not, nothing is left of it."""

import io
import json
import shutil

import pytest
import torch
from conftest import tiny_arguments
from peft import LoraModel, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_grpo
from harness.errors import RunError, UserError
from harness.tools import chat, compare, merge

LORA = ["--lora.r", "4", "--lora.task_type", "CAUSAL_LM", "--lora.target_modules", "[q_proj,v_proj]"]


def trained(policy, folder, *more: str):
    arguments = [*tiny_arguments(policy, folder), *LORA, "--training.learning_rate", "1e-2", "--samples.held_out", "0"]
    train_grpo.main([*arguments, *more])
    return folder / "run"


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    return trained(policy, tmp_path_factory.mktemp("merge"), "--model.dtype", "float32")


@pytest.fixture(scope="module")
def run_in_bfloat16(policy, tmp_path_factory):
    return trained(policy, tmp_path_factory.mktemp("merge"), "--model.dtype", "bfloat16")


def times(factor: float, run, folder):
    """A copy of a LoRA run whose adapter has learned `factor` times as much."""
    file = shutil.copytree(run, folder) / "adapter_model.safetensors"
    weights = {name: weight * factor if "lora_B" in name else weight for name, weight in load_file(file).items()}
    save_file(weights, file)
    return folder


def refused(run, output) -> str:
    with pytest.raises(RunError) as error:
        merge.main([str(run), "-o", str(output)])
    assert not output.exists() and not list(output.parent.glob("tmp*")) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("dtype", "least", "most"), [("float32", 0, 0.01), ("bfloat16", 0.1, 5)])
def test_the_merged_folder_opens_without_peft_and_answers_alike(
    dtype, least, most, request, policy, tmp_path, capfd, monkeypatch
):
    source = request.getfixturevalue("run" if dtype == "float32" else "run_in_bfloat16")
    run = shutil.copytree(source, tmp_path / "run")
    capfd.readouterr()
    merge.main([f"{run}/"])
    out, err = capfd.readouterr()
    folder = tmp_path / "run-merged"
    assert err == "" and out.startswith(f"{folder}: merged in {dtype}; ")
    assert least <= float(out.split("off by ")[1].split("%")[0]) < most
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run-merged"}  # and nothing temporary
    assert {str(weight.dtype) for weight in load_file(folder / "model.safetensors").values()} == {f"torch.{dtype}"}
    assert not list(folder.glob("adapter*"))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert str(model.dtype) == f"torch.{dtype}"
    base = AutoModelForCausalLM.from_pretrained(policy, dtype=dtype)
    prompt = [{"role": "user", "content": json.loads((run / "samples.jsonl").open().readline())["question"]}]
    ids = torch.tensor([tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]])
    with torch.no_grad():
        merged, untrained = model(ids).logits, base(ids).logits
        adapter = PeftModel.from_pretrained(base, run)(ids).logits
    assert (merged - adapter).norm() < 0.1 * (untrained - adapter).norm()
    monkeypatch.setattr("sys.stdin", io.StringIO("富士山の高さは?\n"))
    chat.main([str(folder)])
    compare.main([str(run), str(folder)])
    out = capfd.readouterr().out.replace("\n", "")
    assert "富士山の高さは?" in out and out.count(f"{folder}: no verdict") == 1
    with pytest.raises(UserError, match=f"{folder}: is there already, and is never overwritten"):
        merge.main([str(run)])


def test_an_adapter_too_fine_for_its_dtype_or_that_has_learned_nothing_is_refused(run_in_bfloat16, tmp_path):
    message = refused(times(0.01, run_in_bfloat16, tmp_path / "fine"), tmp_path / "merged")
    assert "not merged in bfloat16: its logits would be off by " in message and "of 25% allowed" in message
    message = refused(times(0, run_in_bfloat16, tmp_path / "nothing"), tmp_path / "merged")
    assert "every B of its adapter is zero" in message


def test_an_adapter_that_changes_another_layer_with_it_is_refused(policy, tmp_path):
    """Its embedding is its output layer too: merged into the one, the adapter is in both."""
    run = trained(policy, tmp_path, "--lora.target_modules", "[embed_tokens]", "--training.max_steps", "2")
    assert "not merged in float32" in refused(run, tmp_path / "merged")


def test_a_merge_that_does_nothing_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **_: self.unload())
    assert "it would be the base model; its logits would be off by 100%" in refused(run, tmp_path / "merged")


def test_without_samples_another_question_is_compared(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "samples.jsonl").write_text("")
    merge.main([str(copy), "-o", str(tmp_path / "new/merged")])
    assert (tmp_path / "new/merged/model.safetensors").exists()


def test_a_run_does_not_go_into_the_folder_of_its_own_model(policy, tmp_path):
    model = shutil.copytree(policy, tmp_path / "run")
    with pytest.raises(UserError, match="is the folder of the model itself, which would be overwritten"):
        train_grpo.main([*tiny_arguments(f"{model}/", tmp_path), "--check"])


def test_a_full_run_and_no_run_are_named(run, policy, tmp_path):
    with pytest.raises(UserError, match="no run .no config.yaml."):
        merge.main([str(tmp_path)])
    full = shutil.copytree(policy, tmp_path / "run")  # a whole model, where a LoRA run has its adapter
    for name in ("config.yaml", "trainer_state.json"):
        shutil.copy(run / name, full)
    with pytest.raises(UserError, match="run: no LoRA run, so there is nothing to merge; it opens with"):
        merge.main([str(full)])
