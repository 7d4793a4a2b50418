"""Chat on real tiny runs: it answers as the run's own samples did, before and after training."""

import io
import json
import shutil

import pytest
from conftest import tiny_arguments
from transformers import AutoModelForCausalLM

import rewards
import train_grpo
from harness.errors import UserError
from harness.reward import score_words
from harness.tools import chat

QUESTION = "富士山の高さは?"
LORA = ["--lora.r=4", "--lora.target_modules=[q_proj,v_proj]", "--lora.task_type=CAUSAL_LM"]
LORA += ["--training.learning_rate=0.3"]
# One question, as a batch of several draws other random numbers for each; and of how it is sampled nothing by default.
SAMPLING = [f"--samples.questions=['{QUESTION}']", "--samples.held_out=0", "--prompts.system=日本語で答える"]
SAMPLING += ["--training.seed=7", "--training.temperature=2.0", "--training.top_p=0.95", "--training.top_k=40"]
SAMPLING += ["--training.min_p=0.1", "--training.repetition_penalty=1.05", "--training.max_completion_length=24"]
SAMPLING += ["--training.generation_kwargs={min_new_tokens: 20}"]


@pytest.fixture(scope="module", params=["full", "lora", "pissa"])
def run(request, policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    more = {"full": [], "lora": LORA, "pissa": [*LORA, "--lora.init_lora_weights=pissa", "--training.beta=0"]}
    train_grpo.main([*tiny_arguments(policy, folder), *SAMPLING, *more[request.param]])
    return folder / "run"


@pytest.fixture
def chatted(monkeypatch, capfd):
    def chatted(folder, text: str = QUESTION, typed: bool = False) -> tuple[str, str]:  # stdout, stderr
        stdin = io.StringIO(text)
        stdin.isatty = lambda: typed
        monkeypatch.setattr("sys.stdin", stdin)
        chat.main([str(folder)])
        return capfd.readouterr()

    return chatted


def test_both_answers_are_the_runs_own_samples(run, chatted, monkeypatch):
    loads, load = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loads.append(1) or load(*a, **k))
    out, err = chatted(run)
    (sample,) = map(json.loads, (run / "samples.jsonl").open(encoding="utf-8"))
    before, after = sample["before"], sample["after"]
    assert before["completion"] != after["completion"]
    said = [f"{side['completion']}\n  ({score_words(side['rewards'])})\n" for side in (before, after)]
    assert out == f"\n{QUESTION}\n  base: {said[0]}  trained: {said[1]}" and "answer –" in out and err == ""
    assert len(loads) == (1 if "lora0" in str(run) else 2)  # models in memory


@pytest.mark.parametrize("run", ["full"], indirect=True)
def test_questions_come_one_after_another(run, chatted):
    rows = [  # stdin, whether it is typed, questions that are answered, prompts for one
        ("甲?\n\n乙?\n", True, 1, 2),  # an empty line ends it
        ("甲?\n乙?", True, 2, 3),  # so does Ctrl-D
        ("甲?\n\n乙?\n", False, 2, 0),  # lines of a file
        ("[/b]は?", False, 1, 0),  # as rich's markup it could not be shown
    ]
    for text, typed, answers, prompts in rows:
        out, _ = chatted(run, text, typed)
        assert (out.count("answer –") / 2, out.count("question: ")) == (answers, prompts), text
        assert "[/b]" not in text or text in out


@pytest.mark.parametrize("run", ["full"], indirect=True)
def test_scores_are_only_of_rewards_as_the_run_had_them(run, chatted, monkeypatch):
    monkeypatch.delattr(rewards, "emoji_reward")  # of today's rewards.py, which costs the run's own nothing
    assert "emoji " in chatted(run)[0]
    text = (run / "rewards.py").read_text(encoding="utf-8")
    raises = "\ndef emoji_reward(completions, max_emoji=4):\n    return 1 / 0\n"
    for place, code in (
        ("rewards.emoji_reward: raised ZeroDivisionError", raises),
        ("rewards.emoji_reward.max_emoji: ", "emoji_reward = lambda completions: [0]"),
        ("rewards.emoji_reward: ", "del emoji_reward"),
        (f"run/rewards.py:{text.count(chr(10)) + 2}: ", "import nothing_there"),
    ):
        (run / "rewards.py").write_text(f"{text}\n{code}\n")
        out, err = chatted(run)
        assert err.startswith("note: no scores: ") and place in err and err.count("\n") == 1
        assert QUESTION in out and "answer –" not in out and "\n  trained: " in out  # the answers alone


def test_what_is_not_there_is_named(run, tmp_path, chatted):
    # The files that are there, at last all but the weights; and what is said
    for names, words in (("none", "missing"), ("config.yaml", "no model yet"), ("*.json*", f"model: .*{tmp_path}")):
        for file in run.glob(names):
            shutil.copy(file, tmp_path)
        with pytest.raises(UserError, match=words):
            chatted(tmp_path)
