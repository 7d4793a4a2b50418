"""What we build on in TRL and transformers: where a new version moves it, a test fails with the name of what moved."""

import ast
import inspect
import re
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from conftest import ROOT, tiny_arguments
from datasets import Dataset
from huggingface_hub import HfApi
from pydantic import ConfigDict, create_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from harness.keys import REFUSED, STRICTER, upstream
from harness.rewards_file import FROM_TRL
from harness.settings import read_settings

SIGNATURES = {
    "_get_per_token_logps_and_entropies": "model input_ids attention_mask logits_to_keep batch_size compute_entropy",
    "_init_training_state": "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
    "save_model": "output_dir _internal_call",
    "log": "logs start_time",
    "evaluate": "eval_dataset ignore_keys metric_key_prefix",
}
CODE = {path.name: path.read_text(encoding="utf-8") for path in [*ROOT.glob("harness/**/*.py"), ROOT / "train_grpo.py"]}
NODES = [(file, node) for file, text in CODE.items() for node in ast.walk(ast.parse(text))]
FUNCTIONS = {node.name: node for _, node in NODES if isinstance(node, ast.FunctionDef)}
OURS = {name for name in FUNCTIONS if not hasattr(GRPOTrainer, name)}
LISTED = set(re.findall(r"(?<![\w.])_[a-z]\w+", CODE["trainer.py"].split('"""')[1]))
ELSEWHERE = {"_instances", "_cdata", "_model_mapping", "_can_compile_fullgraph"}  # tqdm's, PyTorch's, the models'


class Recorder(TrainerCallback):
    """Notes each event of a run, and each call of what we override, with the files of a checkpoint at that moment."""

    def __init__(self):
        self.notes = []

    def watch(self, trainer):
        self.trainer = trainer
        trainer.add_callback(self)
        for name in [name for name in dir(TrainerCallback) if name.startswith("on_")]:
            setattr(self, name, partial(self.note, name))
        for name in [*SIGNATURES, "create_model_card"]:
            setattr(trainer, name, partial(self.call, name, getattr(trainer, name, None)))

    def note(self, event, *args, **kwargs):
        step = self.trainer.state.global_step
        folder = Path(self.trainer.args.output_dir, f"checkpoint-{step}")
        files = {path.name: path.stat().st_mtime_ns for path in folder.glob("*")}
        self.notes.append(SimpleNamespace(event=event, step=step, files=files, args=args, kwargs=kwargs))

    def call(self, name, method, *args, **kwargs):
        self.note(name, *args, **kwargs)
        note = self.notes[-1]
        note.result = None if name == "create_model_card" else method(*args, **kwargs)  # no card, as in ours
        return note.result

    def upload(self, *_, **kwargs):
        self.note("upload", **kwargs)
        done = Future()
        done.set_result(None)
        return done

    def probe(self, prompts, completions, log_metric, **others):
        """The reward of the run."""
        self.prompts, self.given = prompts, {"prompts", "completions", "log_metric", *others}
        log_metric("logged_by_a_reward", 7.0)
        return [float(len(completion[0]["content"]) % 5) for completion in completions]

    def all(self, *events):
        return [note for note in self.notes if note.event in events]


@pytest.fixture(scope="module")
def run(policy, rows, tmp_path_factory) -> Recorder:
    """Upstream's own trainer: 4 steps of 2 micro-batches; a generation batch feeds 2; saves at 2, at 4, and after."""
    values = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    values |= {"save_steps": 2, "push_to_hub": True, "hub_model_id": "me/run", "hub_always_push": True}
    settings, recorder = read_settings(tiny_arguments(policy, tmp_path_factory.mktemp("upstream"))), Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HfApi, "create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/run"))
        patch.setattr(HfApi, "upload_folder", recorder.upload)
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
            reward_funcs=[recorder.probe],
            args=GRPOConfig(**settings.training | values),
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": row["query"]}]} for row in rows]),
            processing_class=AutoTokenizer.from_pretrained(policy),
        )
        recorder.watch(trainer)
        trainer.train()
        trainer.save_model(_internal_call=True)
        trainer.push_to_hub()
        trainer.evaluate(trainer.train_dataset.select(range(2)))
    return recorder


def test_the_list_in_trainer_py_is_complete():
    used = {getattr(node, field, None) for _, node in NODES for field in ("attr", "arg", "name")}
    used |= set(re.findall(r'[gs]etattr\([^,]+, "(\w+)"', "".join(CODE.values())))
    private = {name for name in used if re.match("_[a-z]", name or "")}
    assert private - OURS - ELSEWHERE == LISTED | {"_internal_call"}, "private names used in harness/ and those listed"


OWNERS = {  # upstream's objects, and how harness/ calls them
    "args": r"\w+.py:(self\.)?(trainer\.)?(args|arguments)",
    "state": r"(?!compare)\w+.py:(self\.)?(trainer\.)?state",
    "trainer": r"\w+.py:(self\.)?trainer|trainer.py:self",
}
READ = {  # (object, its attribute, the file that reads it)
    (owner, node.attr, file)
    for owner, pattern in OWNERS.items()
    for file, node in NODES
    if isinstance(node, ast.Attribute) and re.fullmatch(pattern, f"{file}:{ast.unparse(node.value)}")
    if node.attr not in {*OURS, "placebo", "own_scores"}  # the latter are attributes of ours
}


def test_the_attributes_that_we_read(run):
    objects = {"args": run.trainer.args, "state": run.trainer.state, "trainer": run.trainer}
    set_with_vllm = inspect.getsource(GRPOTrainer)
    missing = {read for read in READ if not hasattr(objects[read[0]], read[1])}
    gone = {read for read in missing if f"self.{read[1]} = " not in set_with_vllm}
    assert not gone and len(READ) > 80, "READ: the pattern of an owner fits no more, if few are left"


def test_the_methods_that_we_call_or_override(run):
    for name, expected in SIGNATURES.items():
        parameters = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)[1:]
        assert parameters[: len(expected.split())] == expected.split(), f"the parameters of GRPOTrainer.{name}"
    name, calls = "GRPOTrainer._get_per_token_logps_and_entropies", run.all("_get_per_token_logps_and_entropies")
    for call in calls:
        given = dict(zip(SIGNATURES[call.event].split(), call.args, strict=False)) | call.kwargs
        logps, entropies, aux_loss = call.result
        assert logps.shape == (len(given["input_ids"]), given["logits_to_keep"]), name
        assert aux_loss is None and (entropies is not None) == given.get("compute_entropy", False), name
    assert {call.result[0].requires_grad for call in calls} == {True, False}, f"{name}: policy and reference"


def test_each_event_comes_with_what_we_take(run):
    events = sorted(name for name in FUNCTIONS if name.startswith("on_"))
    assert len(events) > 5
    for event in events:
        assert run.all(event), f"TrainerCallback.{event} is gone"
        wanted = {parameter.arg for parameter in FUNCTIONS[event].args.args[4:]}
        assert wanted <= set(run.all(event)[0].kwargs), f"TrainerCallback.{event}: what it is given"
    (note,) = run.all("on_evaluate")
    assert {"eval_reward", "eval_rewards/probe/mean"} <= set(note.kwargs["metrics"])
    source = inspect.getsource(GRPOTrainer._maybe_log_save_evaluate)  # the callbacks see them before the best is chosen
    assert re.search(r"metrics = self\._evaluate\(.*_determine_best_metric\(metrics=metrics", source, re.DOTALL)


def test_the_order_of_a_save(run):
    names = ["on_step_end", "on_log", "create_model_card", "save_model", "on_push_begin", "upload", "on_save"]
    notes = [note for note in run.all(*names) if note.step == 2]
    assert [note.event for note in notes] == names, "Trainer._save_checkpoint: the order"
    save, end, folder = notes[3], notes[6], Path(run.trainer.args.output_dir, "checkpoint-2")
    assert not save.files, "Trainer._save_checkpoint: something is written before save_model"
    assert (save.args, save.kwargs) == ((str(folder),), {"_internal_call": True}), "Trainer._save_checkpoint"
    assert end.files.keys() >= {"model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"}, "on_save"
    assert end.files == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}, "on_save: written after it"
    assert not (folder.parent / "README.md").exists(), "the card is written by another method than create_model_card"
    assert len(run.all("upload")) == 3, "save_model(_internal_call=True) uploads, or push_to_hub does not"


LOGGED = "reward reward_std frac_reward_zero_std rewards/probe/mean rewards/probe/std completions/mean_length "
LOGGED += "completions/clipped_ratio kl entropy step_time logged_by_a_reward"


def test_what_a_reward_is_given_and_what_is_logged(run):
    assert run.prompts == [prompt for prompt in run.prompts[::4] for _ in range(4)], "a group's rows are not neighbours"
    assert run.given == FROM_TRL, "GRPOTrainer passes a reward other arguments: FROM_TRL in rewards_file.py"
    logs = [note.kwargs["logs"] for note in run.all("on_log") if "reward" in note.kwargs["logs"]]
    missing = [key for key in LOGGED.split() for log in logs if log.get(key) is None]
    assert len(logs) == 2 and not missing, "not logged with the rewards"


def test_the_settings_that_we_name_their_words_and_their_types():
    ours = {*" ".join(STRICTER).split(), *(key.removeprefix("training.") for key in REFUSED)}
    assert ours - set(GRPOConfig.__dataclass_fields__) == {"max_prompt_length"}, "GRPOConfig: what is gone"
    for key, kind in STRICTER.items():
        words = {word for part in (kind, *get_args(kind)) for word in get_args(part) if isinstance(word, str)}
        field = GRPOConfig.__dataclass_fields__[key.split()[0]]
        quoted = {field.default, *re.findall(r"(?<!=)'(\w+)'", field.metadata["help"])}
        assert words in (set(), quoted), f"GRPOConfig.{key}: the words in its help"
    for key, kind in upstream().items():
        assert create_model("Key", __config__=ConfigDict(arbitrary_types_allowed=True), value=(kind, ...)), key
