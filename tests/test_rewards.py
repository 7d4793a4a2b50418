"""The rewards, as tables of literal texts. No torch, no trl: this file runs in about a second."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

import rewards

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("富士山の高さは3776メートルです。", 0),
        ("#1 * 2 = 2, 0-9", 0),  # digits, # and * start keycaps, but are no emoji by themselves
        ("😊", 1),
        ("1️⃣", 1),  # a keycap is three code points
        ("👨‍👩‍👧‍👦", 1),  # a family is four people joined by ZWJ
        ("🇯🇵", 1),  # a flag is two letters
        ("👍🏽", 1),  # a skin tone is a modifier
        ("❤️", 1),  # a heart with its variation selector
        ("☆★♪", 0),  # symbols that Japanese texts like, but no emoji
        ("😊✨🎉", 3),
        ("😊✨🎉🌸", 4),
        ("😊✨🎉🌸🗻", 4),  # capped
    ],
)
def test_emoji_reward(text, expected):
    assert rewards.emoji_reward(completions=[text]) == [expected]


def test_emoji_reward_cap_is_a_setting():
    assert rewards.emoji_reward(completions=["😊✨🎉"], max_emoji=2) == [2]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (30, 1.0),
        (29, math.exp(-0.15)),
        (31, math.exp(-0.15)),
        (0, math.exp(-4.5)),
        (40, math.exp(-1.5)),
        (60, 0.011108996538242306),
        (256, math.exp(-0.15 * 226)),
    ],
)
def test_length_reward(length, expected):
    assert rewards.length_reward(completions=["あ" * length]) == [pytest.approx(expected, rel=1e-12)]


def test_length_reward_counts_characters_not_bytes_and_takes_its_settings():
    assert rewards.length_reward(completions=["富士山", "abc"], target_length=3) == [1.0, 1.0]
    assert rewards.length_reward(completions=["あ"], target_length=3, alpha=1) == [pytest.approx(math.exp(-2))]


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("高さは3776メートルです", "3776メートル", 1),
        ("答えは42です", 42, 1),
        ("答えは42です", 0, 0),
        ("高さは３７７６ メートルです", "3776メートル", 1),  # full-width digits, a space
        ("元素記号はfeです", "Fe", 1),
        ("パリです", "ロンドン", 0),
        ("", "パリ", 0),
        ("パリです", "", 0),  # a row without an answer
        ("パリです", None, 0),
    ],
)
def test_answer_reward(text, answer, expected):
    assert rewards.answer_reward(completions=[text], answer=[answer]) == [expected]


def test_messages_and_strings_score_alike_and_trl_arguments_are_ignored():
    extra = {"prompts": ["?", "?"], "completion_ids": [[1], [2]], "answer": ["a", "b"], "title": ["t", "t"]}
    extra |= {"trainer_state": None, "log_extra": print, "log_metric": print}
    strings = ["a😊", "b" * 30]
    messages = [[{"role": "assistant", "content": text}] for text in strings]
    for reward in (rewards.emoji_reward, rewards.length_reward, rewards.answer_reward):
        scores = reward(completions=strings, **extra)
        assert scores == reward(completions=messages, **extra)
        assert all(type(score) is float for score in scores) and len(scores) == 2


def run_rewards(*arguments, stdin=""):
    command = [sys.executable, "-X", "importtime", "rewards.py", *arguments]
    return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, check=True)


def test_command_line_scores_a_text_without_importing_torch():
    result = run_rewards("富士山は3776mです🗻✨")
    header, row = result.stdout.splitlines()
    scores = dict(zip(header.split("\t"), row.split("\t"), strict=True))
    assert scores["emoji_reward"] == "2"
    assert float(scores["length_reward"]) == pytest.approx(math.exp(-0.15 * 17), rel=1e-3)
    assert not {"torch", "trl", "transformers"} & {line.split("|")[-1].strip() for line in result.stderr.splitlines()}


def test_command_line_scores_each_line_of_stdin():
    lines = run_rewards(stdin="😊\nはい\n").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["emoji_reward", "1", "0"]


def test_command_line_waits_for_an_async_reward(tmp_path):
    (tmp_path / "harness").symlink_to(ROOT / "harness")
    text = (ROOT / "rewards.py").read_text(encoding="utf-8")
    slow = "async def slow_reward(completions, **kwargs):\n    return [7.0 for _ in completions]\n\n\nif __name__"
    (tmp_path / "rewards.py").write_text(text.replace("if __name__", slow), encoding="utf-8")
    command = [sys.executable, "rewards.py", "はい"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    header, row = (line.split("\t") for line in result.stdout.splitlines())
    assert dict(zip(header, row, strict=True))["slow_reward"] == "7"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("def my_reward(completions): return [1.0]", "note: my_reward: takes no **kwargs"),
        ("def my_reward(completion, **kwargs): return [1.0]", "note: my_reward: has no parameter `completions`"),
        ("def my_reward(completions, **kwargs): return {}", "error: rewards.my_reward: returned the dict"),
        ("def my_reward(completions, **kwargs): 1 / 0", "error: rewards.my_reward: raised ZeroDivisionError"),
    ],
)
def test_command_line_names_a_mistake(function, words, tmp_path):
    (tmp_path / "harness").symlink_to(ROOT / "harness")
    text = (ROOT / "rewards.py").read_text(encoding="utf-8")
    (tmp_path / "rewards.py").write_text(text.replace("if __name__", f"{function}\n\n\nif __name__"), encoding="utf-8")
    result = subprocess.run([sys.executable, "rewards.py", "はい"], cwd=tmp_path, capture_output=True, text=True)
    assert words in result.stderr and "Traceback" not in result.stderr
