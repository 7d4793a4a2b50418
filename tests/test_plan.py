"""plan and footprint: the memory and disk of a run, as measured and as our pages name them; the table; the doubts."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer
from trl import GRPOConfig

import rewards
import train_grpo
from harness.before.arguments import settle, training_arguments
from harness.before.footprint import footprint, kept
from harness.before.plan import doubts, doubts_of_template
from harness.before.policy import Policy, load_policy, precision
from harness.reward import Reward
from harness.settings import read_settings

WIDTHS = "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"
TINYSWALLOW = (28, 1536, 8960, 12, 2, 151936, True)


def policy_of(config, model=(), precision=torch.bfloat16) -> Policy:
    """A policy of this shape alone."""
    return Policy(dict(model), config, None, "", config.dtype or torch.float32, precision)


def footprint_of(shape, settings):
    """Of a model with (layers, hidden, MLP, heads, KV heads, vocabulary, whether its embeddings are tied)."""
    layers, *widths, vocabulary, tied = shape
    widths = dict(zip(WIDTHS, widths, strict=False))
    others = {"num_hidden_layers": layers, "vocab_size": vocabulary, "tie_word_embeddings": tied}
    config = transformers.Qwen2Config(**widths, **others, dtype=settings.model["dtype"])
    args, lora = training_arguments(settings)
    return footprint(settings, policy_of(config, settings.model, precision(settings.training)), args, lora, 256)


def of_recipes(*recipes, more=()):
    return read_settings(["--check", *(part for name in recipes for part in ("--config", f"{ROOT}/{name}")), *more])


def test_the_footprint_of_the_articles_model():
    size = footprint_of(TINYSWALLOW, of_recipes("recipes/article.yaml"))
    assert size.parameters == size.trainable == 1_543_714_304
    held = sum(size.memory[name] for name in ("weights", "gradients", "optimizer", "reference model"))
    assert held == 5 * 2 * size.parameters
    assert size.disk == 2 * size.parameters * (1 + 3 * 3)  # the model; two checkpoints kept and one being written


# GB that four layers keep beyond what two do, of 16 rows of 512 tokens with padding, on an H200: weights in bfloat16,
# and in float32; products are in bfloat16.
MEASURED = [
    ("Qwen2", (1536, 8960, 12, 2), 1.796, 2.235),
    ("Qwen2", (896, 4864, 14, 2), 1.007, 1.214),
    ("Qwen3", (2048, 6144, 16, 8, 128), 1.932, 2.469),
    ("Llama", (4096, 14336, 32, 8, 128), 3.509, 5.053),
    ("Gemma3Text", (1152, 6912, 4, 1, 256), 1.855, 2.104),
    ("Phi3", (3072, 8192, 32, 32), 2.603, 3.257),
]


def test_what_a_layer_keeps_is_what_a_gpu_measured():
    wrong = []
    for family, widths, *measured in MEASURED:
        shape = dict(zip(WIDTHS, widths, strict=False)) | {"vocab_size": 1000, "pad_token_id": 0}
        for dtype, gigabytes in zip((torch.bfloat16, torch.float32), measured, strict=True):
            policy = policy_of(getattr(transformers, f"{family}Config")(**shape, dtype=dtype))
            two, four = (kept(policy, None, 16, 512, layers=n) / 1e9 for n in (2, 4))
            if abs((four - two) / gigabytes - 1) > 0.02:
                wrong.append((family, dtype, four - two, gigabytes))
    assert wrong == []


def really_kept(config, lora, rows, tokens, cast) -> int:
    """Bytes that a forward pass of a real model with real values keeps, beside its weights."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    body = model.base_model.train()
    if lora:
        get_peft_model(model, lora)
    sizes, alive = {}, []

    def keep(tensor):
        alive.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = torch.ones(rows, tokens, dtype=torch.long)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", cast or torch.bfloat16, enabled=cast is not None):
        body(batch, attention_mask=torch.tril(torch.ones(tokens, tokens))[None, None].bool(), use_cache=False)
    weights = {weight.data_ptr() for weight in body.parameters()}
    return sum(size for address, size in sizes.items() if address not in weights)


SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
LORAS = [None, {"target_modules": SEVEN}, {"target_modules": ["q_proj"]}, {"target_modules": "all-linear"}]
LORAS.append({"target_modules": SEVEN, "use_dora": True})


def test_what_layers_keep_with_and_without_lora_is_what_a_real_forward_pass_keeps():
    """Of SmolLM2-135M's widths; a few tokens, so that the mask weighs little."""
    wrong = []
    for options in LORAS:
        for dtype, cast in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float32, None)):
            shape = dict(zip(WIDTHS, (576, 1536, 9, 3), strict=False))
            config = transformers.LlamaConfig(**shape, vocab_size=100, num_hidden_layers=2, dtype=dtype)
            lora = LoraConfig(r=16, task_type="CAUSAL_LM", **options) if options else None
            given = copy.deepcopy(lora)
            counted = kept(policy_of(config, precision=cast), lora, 4, 32, layers=2)
            assert lora == given  # peft writes into the one it gets
            real = really_kept(config, lora, 4, 32, cast)
            if abs(counted / real - 1) > 0.05:
                wrong.append((options, dtype, cast, counted, real))
    assert wrong == []


def test_dropout_keeps_a_byte_a_value_as_on_a_gpu():
    config = transformers.LlamaConfig(hidden_size=64, intermediate_size=128, num_attention_heads=2, vocab_size=9)
    a_layer = []
    for dropout in (0.0, 0.05):
        lora = LoraConfig(target_modules=SEVEN, lora_dropout=dropout)
        one, two = (kept(policy_of(config), lora, 4, 32, layers=n) for n in (1, 2))
        a_layer.append(two - one)
    assert a_layer[1] - a_layer[0] == 4 * 32 * (6 * 64 + 128)  # what the seven are given


def test_a_run_takes_the_memory_that_an_h200_measured():
    """PyTorch's peak of allocated memory, in GB; completions of 256 tokens, and prompts of nearly 256 in the second."""
    for recipe, measured in (("article", 17.69), ("80gb", 62.42)):
        memory = footprint_of(TINYSWALLOW, of_recipes(f"recipes/{recipe}.yaml")).memory
        assert (sum(memory.values()) - memory["CUDA context"]) / 1e9 == pytest.approx(measured, rel=0.03)


def test_the_memory_that_a_recipe_names_is_the_calculated_one():
    named, computed = {}, {}
    for recipe in ("config", *(f"recipes/{name}" for name in ("article", "16gb", "80gb", "lora", "qlora", "t4"))):
        text = (ROOT / f"{recipe}.yaml").read_text()
        named[recipe] = [int(number) for number in re.findall(r"(\d+) GB by calculation", text)]
        size = footprint_of(TINYSWALLOW, of_recipes(f"{recipe}.yaml"))
        computed[recipe] = [round(sum(size.memory.values()) / 1e9)]
        assert size.uncounted == ""
    assert named == computed


ADAMW, IN_8_BITS = "adamw_torch_fused", "adamw_torch_8bit"
SETTLED = {  # the optimizer, whether sampling is compiled or why not: of what lies over config.yaml
    (IN_8_BITS, "compiled"): ["--training.seed=1", "recipes/best.yaml", "recipes/maths.yaml"],
    (IN_8_BITS, "vLLM"): ["recipes/vllm.yaml", "recipes/vllm_server.yaml"],
    (IN_8_BITS, "flash_attention_2"): ["--model.attn_implementation=flash_attention_2"],
    (IN_8_BITS, "continuous batching"): ["--training.use_transformers_continuous_batching=true"],
    ("adamw_torch_4bit", ""): ["recipes/16gb.yaml"],
    (ADAMW, ""): ["recipes/article.yaml"],
    (ADAMW, "CPU"): ["recipes/cpu.yaml", "--config=demo/config.yaml"],
    (ADAMW, "LoRA"): ["recipes/lora.yaml", "recipes/qlora.yaml", "recipes/t4.yaml", "--lora.r=8"],
    (ADAMW, "not bfloat16"): ["recipes/80gb.yaml", "--model.dtype=float32"],
}


def settled(more: str, config) -> tuple[str, str]:
    settings = read_settings(["--check", *more.replace("recipes/", "--config=recipes/").split()])
    args, lora = training_arguments(settings)
    config.dtype = getattr(torch, settings.model["dtype"])
    said = settle(settings, args, lora, policy_of(config, settings.model), 200)
    cache = ("static", {"max_cache_len": 512}) if said == "compiled" else (None, None)  # 200 + 256, a multiple of 64
    assert (args.cache_implementation, args.generation_kwargs) == cache
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == (32 if "cpu" in more else 64), more
    return args.optim.value, said.removeprefix("not compiled (").removesuffix(")")


def test_what_is_for_some_runs_is_left_out_of_the_others(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("number_reward", "ends_in_number_reward"):  # of examples/maths_rewards.py, for recipes/maths.yaml
        monkeypatch.setattr(rewards, name, rewards.answer_reward, raising=False)
    overlays = {more: expected for expected, files in SETTLED.items() for more in files}
    assert {str(file) for file in Path("recipes").glob("*.yaml")} < overlays.keys()
    assert {more: settled(more, transformers.Qwen2Config()) for more in overlays} == overlays
    assert settled("", transformers.MambaConfig()) == (IN_8_BITS, "mamba")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert settled("", transformers.Qwen2Config()) == (ADAMW, "FSDP or ZeRO")


# Qwen2.5's, 1.5B, 7B and 32B
SHAPES = [TINYSWALLOW, (28, 3584, 18944, 28, 4, 152064, False), (64, 5120, 27648, 40, 8, 152064, False)]
WITH_FSDP = ["recipes/article.yaml"]  # whose AdamW takes the place of the 8-bit one
ENGINES = [([], False, 1), (WITH_FSDP, True, 2), (WITH_FSDP, True, 8), (WITH_FSDP, True, 16)]
ENGINES += [(["recipes/lora.yaml"], False, 1), (["recipes/lora.yaml"], True, 8)]


def test_the_memory_that_the_page_on_scaling_names_is_the_calculated_one(monkeypatch):
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    named = [[int(cell) for cell in row] for row in re.findall(r"^\|.*\| (\d+) \| (\d+) \| (\d+) \|$", page, re.M)]
    for (recipes, fsdp, processes), row in zip(ENGINES, named, strict=True):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", str(fsdp).lower())
        settings = of_recipes(*recipes, more=["--training.per_device_train_batch_size", "8"])
        monkeypatch.setattr("trl.GRPOConfig.world_size", processes)
        sizes = [footprint_of(shape, settings) for shape in SHAPES]
        assert [round(sum(size.memory.values()) / 1e9) for size in sizes] == row


BY_CHANCE = ["--training.optim", "adamw_torch_8bit", "--training.optim_args", "bf16_stochastic_round=True"]
SMALL = ["--model.dtype", "bfloat16", "--training.learning_rate", "1e-6"]
DEMO = ["1,030,560 parameters, all trained, float32", "291 read: 227 to train on, 64 held out", "<|im_start|>user⏎"]
DEMO += ["2 prompts x 4 = 8 completions", "4 optimizer steps; 16 completions", " 2 times", "1 warning above"]
DEMO += ["GB (estimated)", "answer '", "(str)", "2 x length_reward (target_length 30, alpha 0.15)"]
LORA = "--lora={r: 4, target_modules: [q_proj], layers_to_transform: [%d]}"
EVERY_SECOND = "--training.activation_checkpointing_kwargs={every_n_layers: 2, offload: true}"
AT_ONCE = ["--training.per_device_train_batch_size=512", "--samples.held_out=0"]
TWO_EPOCHS = ["--training.max_steps", "-1", "--training.num_train_epochs", "2"]
PLANS = [  # (arguments, what the plan says, what it does not)
    ([], DEMO, ["lost everything", "round back", "roughly"]),
    (["--training.save_strategy", "no"], ["warning: save_strategy", "2 warnings above; "], ["nothing found"]),
    (["--model.attn_implementation", "flash_attention_2"], ["sdpa", "not flash_attention_2: "], []),
    (SMALL, ["round back"], []),
    ([*SMALL, *BY_CHANCE], ["bfloat16"], ["round back"]),
    (["--training.num_iterations", "2"], ["8 completions", "4 optimizer steps; 16 ", " 1 time"], []),
    (["--rewards.answer_reward.f1=true"], ["nothing found"], ["cheats"]),
    (TWO_EPOCHS, ["224 optimizer steps; 16 ", " 112 times"], []),
    (["--training.activation_checkpointing=true", *AT_ONCE], ["activations 2.5"], []),  # 5.2 without
    (["--training.activation_checkpointing=true", EVERY_SECOND, *AT_ONCE], ["activations 4."], []),
    ([LORA % 0], ["trained with LoRA", "about"], ["roughly"]),
    ([LORA % 0, "--training.learning_rate=1e-6"], ["is one for all weights"], []),
    ([LORA % 1], ["trained with LoRA", "roughly", "target modules"], ["about"]),  # a copy of one layer lacks it
]


def test_the_plan(tiny, capsys, monkeypatch):
    for arguments, words, absent in PLANS:
        train_grpo.main([*tiny, "--check", *arguments])
        plan = " ".join(capsys.readouterr().out.split())
        assert [word for word in [*words, *absent] if word in plan] == words, (arguments, plan)
    for variable, warned in (("TORCHELASTIC_RUN_ID", True), ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", False)):
        monkeypatch.setenv(variable, "600")
        train_grpo.main([*tiny, "--check"])
        assert ("kills a run 30 s after a signal" in " ".join(capsys.readouterr().out.split())) is warned


def test_precision_is_what_upstream_makes_of_the_settings():
    for training in ({}, {"bf16": True}, {"bf16": False}, {"fp16": True}, {"fp16": True, "bf16": False}):
        args = GRPOConfig(use_cpu=True, **training)
        assert precision(training) == (torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None)


# Settings, parameters of the model, steps, a word of the one doubt; None: there is none
LORA_IN_VLLM = ["--training.use_vllm=true", "--config=recipes/lora.yaml"]
DOUBTS = [
    (["--training.learning_rate=2e-5"], 135e6, 50, None),
    (["--training.learning_rate=3e-5"], 135e6, 50, "destroy"),
    (["--training.learning_rate=6e-4", "--config=recipes/lora.yaml"], 135e6, 50, None),
    (["--training.learning_rate=1e-6"], 135e6, 3, "3 optimizer steps"),
    (["--training.learning_rate=1e-6"], 1500e6, 1250, None),
    (["--training.use_vllm=true", "--training.top_p=0.9", "--training.top_k=20"], 1e6, 50, "top_p"),
    (["--training.use_vllm=true", "--training.min_p=0.1"], 1e6, 50, "min_p"),
    (["--training.top_p=0.9"], 1e6, 50, None),
    ([*LORA_IN_VLLM, "--model.dtype=bfloat16"], 1e6, 50, "merged in bfloat16"),
    ([*LORA_IN_VLLM, "--model.quantization_config={load_in_4bit: true}"], 1e6, 50, "4-bit"),
    (LORA_IN_VLLM, 1e6, 50, None),
]


def test_the_plan_doubts_settings_that_run_and_teach_nothing_or_the_wrong_thing(policy, monkeypatch):
    monkeypatch.chdir(ROOT)
    demo = ["--config", "demo/config.yaml", "--model.pretrained_model_name_or_path", policy, "--check"]
    wrong = []
    for arguments, parameters, steps, expected in DOUBTS:
        settings = read_settings([*demo, *arguments])
        args, lora = training_arguments(settings)
        plan = SimpleNamespace(rewards=[], settings=settings, args=args, lora=lora, policy=load_policy(settings))
        plan.size, plan.steps = SimpleNamespace(parameters=parameters), steps
        plan.data = SimpleNamespace(held_out=range(64))
        found = doubts(plan)
        if len(found) != bool(expected) or (expected or "") not in "".join(found):
            wrong.append((arguments, found))
    assert wrong == []
    for held_out, expected in ((7, "held_out: 7 questions, so no verdict"), (63, "wide")):
        plan.data.held_out = range(held_out)
        (found,) = doubts(plan)
        assert expected in found


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ thinks }}{% endif %}"
)
BARE = "{% for m in messages %}{{ m.content | trim }}{% endfor %}"
OF_TEMPLATES = [  # the template, its thinks, the tokens that end an answer, the question, words of the one doubt
    (TEMPLATE, "", "<|im_end|>", "?", ""),
    (TEMPLATE, "", "<|endoftext|>", "?", "<|im_end|> <|endoftext|>"),
    (TEMPLATE, "", "<|endoftext|> <|im_end|>", "?", ""),
    (TEMPLATE, "", "<|im_end|>", "<|im_start|>user\n?<|im_end|>\n", "<|im_end|> first question"),
    (TEMPLATE, "<think>\n", "<|im_end|>", "?", "my_think_format <think>"),
    (BARE, "", "<|im_end|>", " ? ", ""),
    (TEMPLATE, "<think>\n\n</think>\n", "<|im_end|>", "?", ""),
]


def test_the_plan_doubts_what_the_template_does_otherwise(policy):
    tokenizer = AutoTokenizer.from_pretrained(policy)
    rewards = [Reward("length", 1, {}, len), Reward("my_think_format", 1, {}, len)]
    wrong = []
    for template, thinks, ends, question, words in OF_TEMPLATES:
        tokenizer.chat_template = template
        tokenizer.eos_token, *others = ends.split()
        generation = SimpleNamespace(eos_token_id=tokenizer.convert_tokens_to_ids(others))
        of = SimpleNamespace(tokenizer=tokenizer, generation=generation)
        data = SimpleNamespace(train=[{"prompt": [{"role": "user", "content": question}]}])
        args = SimpleNamespace(chat_template_kwargs={"thinks": thinks})
        found = doubts_of_template(SimpleNamespace(policy=of, data=data, args=args, rewards=rewards))
        if len(found) != bool(words) or any(word not in found[0] for word in words.split()):
            wrong.append((template, thinks, ends, question, found))
    assert wrong == []
