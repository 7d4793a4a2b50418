"""What we rely on in TRL and transformers, one row each: after a version bump, the failures name what moved."""

import ast
import inspect
import re

import pytest
import torch
from conftest import ROOT, tiny_arguments
from huggingface_hub import HfApi
from transformers import Trainer as Transformers
from transformers import TrainerCallback
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

import train_grpo
from harness import trainer as ours
from harness.settings import MOVED, ONE_WORD_OF, STRICTER

# The private names, and the parameters that we pass by position or by name
SIGNATURES = {
    "_get_per_token_logps_and_entropies": (
        GRPOTrainer,
        "self model input_ids attention_mask logits_to_keep batch_size compute_entropy",
    ),
    "_init_training_state": (
        Transformers,
        "self max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
    ),
    "save_model": (GRPOTrainer, "self output_dir _internal_call"),
    "push_to_hub": (GRPOTrainer, "self commit_message blocking token revision private"),
    "create_model_card": (GRPOTrainer, "self model_name dataset_name tags"),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    owner, expected = SIGNATURES[name]
    parameters = list(inspect.signature(getattr(owner, name)).parameters)
    assert parameters[: len(expected.split())] == expected.split(), f"{owner.__name__}.{name} has other parameters"


def test_every_private_name_of_upstream_stands_in_the_list_of_trainer_py():
    """A private name in harness/ that the trainers of TRL or transformers have as well is theirs."""
    theirs = set(re.findall(r"self\.(_\w+)", inspect.getsource(GRPOTrainer) + inspect.getsource(Transformers)))
    theirs |= {name for name in vars(GRPOTrainer) | vars(Transformers) if re.match("_[a-z]", name)}
    used = set()
    for file in (ROOT / "harness").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            used |= {getattr(node, "attr", ""), node.name if isinstance(node, ast.FunctionDef) else ""}
    assert used & theirs == set(re.findall(r"\b_\w+", ours.__doc__)), "harness/trainer.py's docstring is not complete"


class Recorder(TrainerCallback):
    """What happens in a run, in its order, and what can be seen at each event."""

    def __init__(self):
        self.events, self.logs, self.trainer = [], [], None

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.sampler = train_dataloader.batch_sampler.sampler
        self.stateful = dict(state.stateful_callbacks)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = [weight.grad is not None for weight in model.parameters()]
        self.weights = [weight.detach().clone() for weight in model.parameters()]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.moved = any(not torch.equal(a, b) for a, b in zip(self.weights, model.parameters(), strict=True))
        self.events.append(("step end", self.trainer._step, self.trainer._buffered_inputs))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))

    def on_save(self, args, state, control, **kwargs):
        folder = ROOT / args.output_dir / f"checkpoint-{state.global_step}"
        self.events.append(("on_save", sorted(path.name for path in folder.iterdir())))


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """A run of four steps, in which each generation batch feeds two; saved once, in the middle of the second."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:

        def recorded(name):
            method = getattr(GRPOTrainer, name)

            def call(self, *args, **kwargs):
                recorder.events.append((name, args))
                return method(self, *args, **kwargs)

            patch.setattr(GRPOTrainer, name, call)

        original = ours.Trainer.__init__

        def initialised(self, *args, **kwargs):
            original(self, *args, **kwargs)
            recorder.trainer = self
            self.add_callback(recorder)

        patch.setattr(ours.Trainer, "__init__", initialised)
        patch.setattr(ours.Trainer, "create_model_card", lambda self, **_: recorder.events.append(("card", _)))
        for name in ("save_model", "_save_checkpoint", "_init_training_state"):
            recorded(name)
        train_grpo.main([*tiny_arguments(policy, tmp_path_factory.mktemp("upstream")), "--training.save_steps", "3"])
    return recorder


def names(run, *wanted):
    return [event[0] for event in run.events if event[0] in wanted]


def test_the_buffer_of_a_generation_batch(run):
    steps = [(step, buffer) for name, step, buffer in (e for e in run.events if e[0] == "step end")]
    assert [step for step, _ in steps] == [1, 2, 3, 4], "GRPOTrainer._step no longer counts micro-batches"
    same = [steps[i][1] is steps[0][1] for i in range(4)]
    assert same == [True, True, False, False], "GRPOTrainer._buffered_inputs no longer holds one generation batch"
    assert len(steps[0][1]) == 2 and "completion_ids" in steps[0][1][0], (
        "GRPOTrainer._buffered_inputs is built differently"
    )


def test_a_save_begins_with_the_card_and_save_model_and_ends_with_on_save(run):
    order = names(run, "card", "_save_checkpoint", "save_model", "on_save")
    assert order[:4] == ["_save_checkpoint", "card", "save_model", "on_save"], "a checkpoint is saved in another order"
    files = next(event[1] for event in run.events if event[0] == "on_save")
    wanted = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert wanted <= set(files), "on_save comes before all files are written"


def test_the_optimizer_step_comes_between_its_two_events(run):
    assert any(run.gradients), "on_pre_optimizer_step comes before the gradients are there"
    assert run.moved, "on_pre_optimizer_step comes after the weights have moved"


def test_the_prompts_order_can_be_repeated(run):
    assert isinstance(run.sampler, RepeatSampler), "train_dataloader.batch_sampler.sampler is no RepeatSampler"
    assert isinstance(run.sampler.generator, torch.Generator), "RepeatSampler.generator"


LOGGED = [
    *["loss", "reward", "reward_std", "frac_reward_zero_std", "step_time", "kl"],
    *["completions/mean_length", "completions/clipped_ratio", "completions/mean_characters"],
    *["rewards/emoji_reward/mean", "rewards/emoji_reward/std", "rewards/emoji_reward/flat_groups"],
]


@pytest.mark.parametrize("key", LOGGED)
def test_logs_have_the_keys_that_we_read(run, key):
    assert key in run.logs[0], f"{key} is no longer logged"


def test_state_of_callbacks_is_kept_under_the_class_name(run):
    assert "seconds" in run.stateful["Report"]["attributes"], "TrainerState.stateful_callbacks"


ATTRIBUTES = [
    *["eos_token_ids", "reward_func_names", "reward_funcs", "reward_processing_classes", "model_wrapped"],
    *["num_iterations", "push_in_progress", "hub_model_id", "use_vllm"],
]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_of_the_trainer(run, name):
    assert hasattr(run.trainer, name) or name == "push_in_progress", f"GRPOTrainer.{name}"
    assert name in inspect.getsource(Transformers) + inspect.getsource(GRPOTrainer), f"GRPOTrainer.{name}"


def test_uploads_are_futures_and_begin_with_on_push_begin():
    source = inspect.getsource(Transformers._push_from_checkpoint)
    assert source.index("on_push_begin") < source.index("upload_folder("), "on_push_begin comes after the upload"
    assert "PushInProgress(push_jobs)" in source and "run_as_future=True" in source, "Trainer.push_in_progress.jobs"
    assert "run_as_future" in inspect.signature(HfApi.upload_folder).parameters


@pytest.mark.parametrize("key", [*" ".join(STRICTER).split(), *ONE_WORD_OF.split()])
def test_settings_that_we_check_more_strictly_are_upstreams(key):
    assert key in GRPOConfig.__dataclass_fields__, f"GRPOConfig.{key} is gone: harness/settings.py, STRICTER"


@pytest.mark.parametrize("key", ONE_WORD_OF.split())
def test_the_help_of_a_setting_quotes_the_words_it_takes(key):
    words = re.findall(r"(?<!=)'(\w+)'", GRPOConfig.__dataclass_fields__[key].metadata["help"])
    assert len(words) >= 2, f"the help of GRPOConfig.{key} no longer quotes its words"


def test_keys_that_are_set_elsewhere_are_still_upstreams():
    gone = [key for key in MOVED if key.removeprefix("training.") not in GRPOConfig.__dataclass_fields__]
    assert gone == ["training.max_prompt_length"]


def test_names_that_are_imported_from_deep_inside():
    assert callable(lazy_import_flash_attention) and callable(unwrap_model_for_generation)
    assert {"sdpa", "flash_attention_2"} <= set(ALL_ATTENTION_FUNCTIONS.valid_keys())
