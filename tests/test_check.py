"""Every mistake is one line in seconds: where, what, and what to do. A table a section, in-process; a few for real."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, refused

import train_grpo
from harness.before.check import training_arguments
from harness.before.data import load_data
from harness.before.footprint import _kept, footprint
from harness.before.machine import no_compiler
from harness.before.plan import Plan
from harness.before.policy import Policy, load_policy
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
    (["--model.attn_implementation", "nobody/kernel"], ["the kernel nobody/kernel does not load", "use sdpa"]),
    (["--model.attn_implementation", "flash"], ["model.attn_implementation: unknown 'flash'", "sdpa"]),
    (
        ["--model.pretrained_model_name_or_path", "./no"],
        ["there is no folder or file", f"{ROOT}/no", "fix the path"],
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
    (["--training.bf16", "true", "--training.fp16", "true"], ["training.fp16: cannot be true together with bf16"]),
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
        assert not without(words, message), message


def tinyswallow(*files):
    """The footprint of TinySwallow's shape, 1.54 B parameters, with recipes."""
    from transformers import Qwen2Config

    config = Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    settings = read_settings(["--check", *(part for file in files for part in ("--config", str(file)))])
    return footprint(settings, Policy(settings.model, config, None, ""), *training_arguments(settings))


def test_the_footprint_of_the_articles_model():
    size = tinyswallow()
    assert size.parameters == size.trainable == 1_543_714_304
    held = sum(size.memory[name] for name in ("weights", "gradients", "optimizer", "reference model"))
    assert held == 5 * 2 * size.parameters
    assert size.disk == 2 * size.parameters * (1 + 3 * 3)  # the model; two checkpoints kept and one being written


# GB that four layers keep beyond what two do, of 16 rows of 512 tokens with padding, on an H200: weights in bfloat16,
# and in float32; products are in bfloat16.
WIDTHS = "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"
MEASURED = [
    ("Qwen2", (1536, 8960, 12, 2), 1.796, 2.235),
    ("Qwen2", (896, 4864, 14, 2), 1.007, 1.214),
    ("Qwen3", (2048, 6144, 16, 8, 128), 1.932, 2.469),
    ("Llama", (4096, 14336, 32, 8, 128), 3.509, 5.053),
    ("Gemma3Text", (1152, 6912, 4, 1, 256), 1.855, 2.104),
    ("Phi3", (3072, 8192, 32, 32), 2.603, 3.257),
]


def test_what_a_layer_keeps_is_what_a_gpu_measured():
    import transformers

    args, wrong = training_arguments(read_settings(["--check"]))[0], []
    for family, widths, *measured in MEASURED:
        shape = dict(zip(WIDTHS, widths, strict=False)) | {"vocab_size": 1000, "pad_token_id": 0}
        for dtype, gigabytes in zip((torch.bfloat16, torch.float32), measured, strict=True):
            policy = Policy({}, getattr(transformers, f"{family}Config")(**shape, dtype=dtype), None, "")
            kept = [_kept(policy, args, None, (16, 512), torch.bfloat16, layers=n, padded=True) / 1e9 for n in (2, 4)]
            if abs((kept[1] - kept[0]) / gigabytes - 1) > 0.02:
                wrong.append((family, dtype, kept[1] - kept[0], gigabytes))
    assert wrong == []


def test_a_run_takes_the_memory_that_an_h200_measured():
    """PyTorch's peak of allocated memory, in GB; completions of 256 tokens, and prompts of nearly 256 in the second."""
    for files, measured in (((), 17.69), ((ROOT / "recipes/80gb.yaml",), 62.42)):
        memory = tinyswallow(*files).memory
        assert (sum(memory.values()) - memory["CUDA context"]) / 1e9 == pytest.approx(measured, rel=0.03)


def test_the_memory_that_a_recipe_names_is_the_formulas():
    named, computed = {}, {}
    for recipe in ("16gb", "24gb", "80gb", "lora", "qlora", "t4"):
        file = ROOT / f"recipes/{recipe}.yaml"
        named[recipe] = [int(number) for number in re.findall(r"(\d+) GB by calculation", file.read_text())]
        computed[recipe] = [round(sum(tinyswallow(file).memory.values()) / 1e9)]
    assert named == computed


# Qwen2.5's shapes: layers, hidden, MLP, heads, KV heads, vocabulary, whether the embeddings are tied
SHAPES = {"1.5B": (28, 1536, 8960, 12, 2, 151936, True), "7B": (28, 3584, 18944, 28, 4, 152064, False)}
SHAPES["32B"] = (64, 5120, 27648, 40, 8, 152064, False)
ENGINES = [([], False, 1), ([], True, 8), ([], True, 16), (["recipes/lora.yaml"], False, 1)]
ENGINES.append((["recipes/lora.yaml"], True, 8))


def test_the_memory_that_the_page_on_scaling_names_is_the_formulas(monkeypatch):
    from transformers import Qwen2Config

    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    named = [[int(cell) for cell in row] for row in re.findall(r"^\|.*\| (\d+) \| (\d+) \| (\d+) \|$", page, re.M)]
    for (files, fsdp, processes), row in zip(ENGINES, named, strict=True):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", str(fsdp).lower())
        files = [part for file in files for part in ("--config", str(ROOT / file))]
        settings = read_settings(["--check", *files, "--training.per_device_train_batch_size", "8"])
        args, lora = training_arguments(settings)
        monkeypatch.setattr(type(args), "world_size", processes)
        for (layers, hidden, mlp, heads, kv_heads, vocabulary, tied), gigabytes in zip(
            SHAPES.values(), row, strict=True
        ):
            config = Qwen2Config(
                vocab_size=vocabulary, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied, dtype="bfloat16",
            )  # fmt: skip
            size = footprint(settings, Policy(settings.model, config, None, ""), args, lora)
            assert round(sum(size.memory.values()) / 1e9) == gigabytes


BY_CHANCE = ["--training.optim", "adamw_torch_8bit", "--training.optim_args", "bf16_stochastic_round=True"]
SMALL = ["--model.dtype", "bfloat16", "--training.learning_rate", "1e-6"]
DEMO = ["1,030,560 parameters, all trained, float32", "291 read: 227 to train on, 64 held out", "<|im_start|>user⏎"]
DEMO += [
    "2 prompts x 4 = 8 completions",
    "4 optimizer steps; 16 completions are sampled at a time, 2 times",
    "at most 512 generated tokens",
]
DEMO += ["2 x length_reward (target_length 30, alpha 0.15)"]
PLANS = [  # (arguments, what the plan says, what it does not)
    ([], DEMO, ["has lost everything", "the rest round back"]),
    (
        ["--training.save_strategy", "no"],
        ["warning: save_strategy is no: a run that is stopped has lost everything"],
        [],
    ),
    (
        ["--model.attn_implementation", "flash_attention_2"],
        ["sdpa, where the model has it (not flash_attention_2: "],
        [],
    ),
    (SMALL, ["the rest round back"], []),
    ([*SMALL, *BY_CHANCE[:2]], ["the rest round back"], []),
    ([*SMALL, *BY_CHANCE], ["bfloat16"], ["the rest round back"]),
]


def test_the_plan(tiny, capsys):
    for arguments, words, absent in PLANS:
        train_grpo.main([*tiny, "--check", *arguments])
        plan = " ".join(capsys.readouterr().out.split())
        assert not without(words, plan) and without(absent, plan) == absent, (arguments, plan)


def test_a_launcher_that_kills_after_half_a_minute_is_named(tiny, capsys, monkeypatch):
    for shutdown, warned in ((None, True), ("600", False)):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", shutdown) if shutdown else None
        train_grpo.main([*tiny, "--check"])
        assert ("kills a run 30 s after a signal" in " ".join(capsys.readouterr().out.split())) is warned


def test_what_low_bits_need_is_checked(tiny, monkeypatch):
    quantized = ["--model.quantization_config", "{load_in_4bit: true}", "--lora.r", "8"]
    monkeypatch.setattr("harness.before.machine.find_spec", lambda name: None)
    assert refused([*tiny, *quantized, "--check"]).startswith(
        "model.quantization_config: bitsandbytes is not installed"
    )
    monkeypatch.setenv("PATH", "")
    train_grpo.main([*tiny, "--training.optim", "adamw_torch_fused", "--check"])  # torch's own, which compiles nothing
    assert refused([*tiny, *BY_CHANCE, "--check"]).startswith("training.optim: torchao compiles it, and there is no C")


def test_qlora_passes_the_check_without_a_gpu(policy, capsys):
    source = ["--dataset.path", str(ROOT / "demo/questions.jsonl"), "--training.max_completion_length", "128"]
    recipe = ["--config", str(ROOT / "recipes/qlora.yaml"), "--model.pretrained_model_name_or_path", policy]
    train_grpo.main([*recipe, *source, "--check"])
    plan = capsys.readouterr().out
    assert plan.startswith("machine: no CUDA GPU here, which training needs") and "trained by LoRA" in plan


def test_the_real_command_line_exits_with_2_and_one_line(policy):
    column = ["--config", "demo/config.yaml", "--prompts.column", "question"]
    command = [sys.executable, "train_grpo.py", *column, "--model.pretrained_model_name_or_path", policy]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: prompts.column: there is no column 'question'")


# Settings, parameters of the model, steps: what the plan says of them; None: nothing
DOUBTS = [
    (["--training.learning_rate=2e-5"], 135e6, 50, None),
    (["--training.learning_rate=3e-5"], 135e6, 50, "learning_rate 3e-05 may destroy a model whose weights are all"),
    (["--training.learning_rate=6e-4"], 1e6, 50, None),
    (["--training.learning_rate=6e-4", "--config=recipes/lora.yaml"], 135e6, 50, None),
    (
        ["--training.learning_rate=1e-6"],
        135e6,
        3,
        "3 optimizer steps at learning_rate 1e-06 teach next to nothing: train 10",
    ),
    (["--training.learning_rate=0"], 135e6, 3, None),
    (["--training.learning_rate=1e-6"], 1500e6, 1250, None),
    (["--training.use_vllm=true", "--training.top_p=0.9", "--training.top_k=20"], 1e6, 50, "top_p and top_k with vLLM"),
    (["--training.use_vllm=true", "--training.min_p=0.1"], 1e6, 50, "min_p with vLLM"),
    (["--training.top_p=0.9"], 1e6, 50, None),
    (["--training.use_vllm=true"], 1e6, 50, None),
    (
        ["--training.use_vllm=true", "--config=recipes/lora.yaml", "--model.dtype=bfloat16"],
        1e6,
        50,
        "merged in bfloat16, which rounds",
    ),
    (["--training.use_vllm=true", "--config=recipes/lora.yaml"], 1e6, 50, None),
]


def test_the_plan_doubts_settings_that_run_and_teach_nothing_or_the_wrong_thing(demo):
    wrong = []
    for arguments, parameters, steps, expected in DOUBTS:
        settings = read_settings([*demo, *arguments])
        args, lora = training_arguments(settings)
        plan = Plan.__new__(Plan)  # of a model that is not there
        plan.settings, plan.args, plan.lora = settings, args, lora
        plan.parameters, plan.steps, plan.policy = parameters, steps, load_policy(settings)
        found = plan._doubts()
        if (expected is None and found) or (expected and (len(found) != 1 or expected not in found[0])):
            wrong.append((arguments, found))
    assert wrong == []


def test_a_gpu_machine_without_a_compiler_or_pythons_header_is_told_before_the_model_is_loaded(tmp_path, monkeypatch):
    """TRL's kernels are compiled at the first step; this machine has no Triton, which an empty package stands for."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("CC", raising=False)
    (tools := tmp_path / "bin").mkdir()
    (include := tmp_path / "include").mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(include)})
    assert f"no C compiler and no {include}/Python.h, with which" in no_compiler()
    (include / "Python.h").touch()
    assert no_compiler().startswith("no C compiler, with which")
    (tools / "clang").touch(0o755)
    assert no_compiler() is None
    monkeypatch.setenv("CC", "gcc-14")
    assert no_compiler().startswith("no compiler gcc-14, which CC names, with which")
