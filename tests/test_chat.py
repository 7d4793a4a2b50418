"""Chat on real tiny runs: it answers as the run's own samples did, before and after training."""

import io
import json
import sys

import pytest
from conftest import tiny_arguments
from transformers import AutoModelForCausalLM

import rewards
import train_grpo
from harness.errors import RewardError, UserError
from harness.reward import score_words
from harness.tools import chat, compare

QUESTION = "富士山の高さは?"
LORA = ["--lora.r", "4", "--lora.target_modules", "[q_proj,v_proj]", "--lora.task_type", "CAUSAL_LM"]
SAMPLING = {  # none of them a default
    "prompts.system": "日本語で答える",
    "training.seed": 7,
    "training.temperature": 2.0,
    "training.top_p": 0.95,
    "training.top_k": 40,
    "training.min_p": 0.1,
    "training.repetition_penalty": 1.05,
    "training.generation_kwargs": "{min_new_tokens: 20}",
    "training.max_completion_length": 24,
}


def trained(policy, folder, *more: str):
    """One question, as a batch of several draws other random numbers for each."""
    arguments = [*tiny_arguments(policy, folder), "--samples.questions", f"['{QUESTION}']", "--samples.held_out", "0"]
    arguments += [part for key, value in SAMPLING.items() for part in (f"--{key}", str(value))]
    train_grpo.main([*arguments, *more])
    return folder / "run"


@pytest.fixture(scope="module")
def full(policy, tmp_path_factory):
    return trained(policy, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def lora(policy, tmp_path_factory):
    return trained(policy, tmp_path_factory.mktemp("lora"), *LORA, "--training.learning_rate", "0.3")


@pytest.fixture(params=["full", "lora"])
def run(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def chatted(monkeypatch, capfd):
    def chatted(folder, text: str, typed: bool = False) -> tuple[str, str]:
        """(stdout without white space and borders, stderr)"""
        stdin = io.StringIO(text)
        stdin.isatty = lambda: typed
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setenv("COLUMNS", "600")
        capfd.readouterr()
        chat.main([str(folder)])
        out, err = capfd.readouterr()
        return out, err

    return chatted


def cells(out: str) -> list[list[str]]:
    """Of each line of a table, what its columns hold."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line[:1] == "│"]


def test_both_answers_are_the_runs_own_samples(run, chatted, monkeypatch):
    loads, load = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loads.append(1) or load(*a, **k))
    out, err = chatted(run, QUESTION)
    (sample,) = map(json.loads, (run / "samples.jsonl").open(encoding="utf-8"))
    before, after = sample["before"], sample["after"]
    assert before["completion"] != after["completion"]
    texts = [before["completion"].strip(), after["completion"].strip()]
    assert cells(out) == [texts, ["", ""], [score_words(side["rewards"]) for side in (before, after)]]
    assert "answer –" in out and QUESTION in out and err == "" and "Loading" not in out
    assert len(loads) == (1 if (run / "adapter_config.json").exists() else 2)  # models in memory


def test_questions_come_one_after_another(full, chatted):
    rows = [  # stdin, whether it is typed, questions that are answered, prompts for one
        ("甲?\n\n乙?\n", True, 1, 2),  # an empty line ends it
        ("甲?\n乙?", True, 2, 3),  # so does Ctrl-D
        ("甲?\n\n乙?\n", False, 2, 0),  # lines of a file
        ("", False, 0, 0),
        ("[/b]は?", False, 1, 0),  # as rich's markup it could not be shown
    ]
    wrong = []
    for text, typed, answers, prompts in rows:
        out, _ = chatted(full, text, typed)
        found = (out.count("answer –") / 2, out.count("question: "))
        if found != (answers, prompts) or ("[/b]" in text and text not in out):
            wrong.append((text, typed, found, out))
    assert wrong == []


def test_a_reward_that_fails_ends_it_in_one_line(full, chatted, monkeypatch):
    def emoji_reward(completions, max_emoji=4, **kwargs):
        raise ValueError("no emoji today")

    monkeypatch.setattr(rewards, "emoji_reward", emoji_reward)
    with pytest.raises(RewardError, match="rewards.emoji_reward: raised ValueError.*no emoji today"):
        chatted(full, QUESTION)


def test_a_broken_rewards_py_costs_the_scores_only(full, chatted, monkeypatch):
    monkeypatch.setitem(sys.modules, "rewards", None)  # so that importing it fails
    out, err = chatted(full, QUESTION)
    assert QUESTION in out and "answer –" not in out and cells(out)[0] != ["", ""]
    assert err.startswith("note: no scores: rewards.py: does not import (ModuleNotFoundError")
    compare.main([str(full)])  # which needs none of them


def test_scores_are_only_of_rewards_as_the_run_had_them(full, chatted, monkeypatch):
    monkeypatch.setattr(rewards, "emoji_reward", lambda completions, most=4, **kwargs: [0.0] * len(completions))
    assert chatted(full, QUESTION)[1].startswith("note: no scores: rewards.emoji_reward.max_emoji: is no parameter")
    monkeypatch.delattr(rewards, "emoji_reward")
    assert chatted(full, QUESTION)[1].startswith(
        "note: no scores: rewards.emoji_reward: no such function in rewards.py"
    )


def test_a_folder_without_a_run_or_its_model_is_named(run, tmp_path, chatted):
    with pytest.raises(UserError, match=f"^{tmp_path}: no run .no config.yaml.; name an output_dir"):
        chatted(tmp_path, QUESTION)
    for name in ("config.yaml", "trainer_state.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
        with pytest.raises(UserError, match=f"^{tmp_path}: the run has left no model yet; finish it with --resume"):
            chatted(tmp_path, QUESTION)
    for file in run.glob("*.json*"):  # all but the weights
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=f"^model: .*{tmp_path}"):
        chatted(tmp_path, QUESTION)
