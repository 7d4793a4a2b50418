"""The rewards, as tables of literal texts. No torch, no trl: this file runs in about a second."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

import rewards

ROOT = Path(__file__).parent.parent


def test_emoji_reward():
    rows = [
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
    ]
    found = rewards.emoji_reward(completions=[text for text, _ in rows])
    assert [(*row, score) for row, score in zip(rows, found, strict=True) if score != row[1]] == []
    assert rewards.emoji_reward(completions=["😊✨🎉"], max_emoji=2) == [2]  # the cap is a setting


def test_length_reward():
    rows = [
        ("あ" * 30, {}, 1.0),
        ("あ" * 29, {}, math.exp(-0.15)),
        ("あ" * 31, {}, math.exp(-0.15)),
        ("", {}, math.exp(-4.5)),
        ("あ" * 40, {}, math.exp(-1.5)),
        ("あ" * 60, {}, 0.011108996538242306),
        ("あ" * 256, {}, math.exp(-0.15 * 226)),
        ("富士山", {"target_length": 3}, 1.0),  # characters, not bytes
        ("abc", {"target_length": 3}, 1.0),
        ("あ", {"target_length": 3, "alpha": 1}, math.exp(-2)),
    ]
    found = [rewards.length_reward(completions=[text], **settings) for text, settings, _ in rows]
    assert [(*row, f) for row, f in zip(rows, found, strict=True) if f != [pytest.approx(row[2], rel=1e-12)]] == []


def test_answer_reward():
    rows = [
        ("高さは3776メートルです", "3776メートル", 1),
        ("答えは42です", 42, 1),
        ("答えは42です", 0, 0),
        ("高さは３７７６ メートルです", "3776メートル", 1),  # full-width digits, a space
        ("元素記号はfeです", "Fe", 1),
        ("パリです", "ロンドン", 0),
        ("", "パリ", 0),
        ("パリです", "", 0),  # a row without an answer
        ("パリです", None, 0),
    ]
    found = rewards.answer_reward(completions=[row[0] for row in rows], answer=[row[1] for row in rows])
    assert [(*row, score) for row, score in zip(rows, found, strict=True) if score != row[2]] == []


def test_messages_and_strings_score_alike_and_trl_arguments_are_ignored():
    extra = {"prompts": ["?", "?"], "completion_ids": [[1], [2]], "answer": ["a", "b"], "title": ["t", "t"]}
    extra |= {"trainer_state": None, "log_extra": print, "log_metric": print}
    strings = ["a😊", "b" * 30]
    messages = [[{"role": "assistant", "content": text}] for text in strings]
    for reward in (rewards.emoji_reward, rewards.length_reward, rewards.answer_reward):
        scores = reward(completions=strings, **extra)
        assert scores == reward(completions=messages, **extra)
        assert all(type(score) is float for score in scores) and len(scores) == 2


def run_rewards(folder, *arguments, stdin="", options=()):
    command = [sys.executable, *options, "rewards.py", *arguments]
    return subprocess.run(command, cwd=folder, input=stdin, capture_output=True, text=True)


def with_function(code: str, folder: Path) -> Path:
    """A folder whose rewards.py has one more function."""
    folder.mkdir()
    (folder / "harness").symlink_to(ROOT / "harness")
    text = (ROOT / "rewards.py").read_text(encoding="utf-8")
    (folder / "rewards.py").write_text(text.replace("if __name__", f"{code}\n\n\nif __name__"), encoding="utf-8")
    return folder


def test_command_line_scores_a_text_without_importing_torch():
    result = run_rewards(ROOT, "富士山は3776mです🗻✨", options=("-X", "importtime"))
    header, row = result.stdout.splitlines()
    scores = dict(zip(header.split("\t"), row.split("\t"), strict=True))
    assert scores["emoji_reward"] == "2"
    assert float(scores["length_reward"]) == pytest.approx(math.exp(-0.15 * 17), rel=1e-3)
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "harness.reward" in imported and not {"torch", "trl", "transformers"} & imported


def test_command_line_scores_each_line_of_stdin_and_waits_for_an_async_reward(tmp_path):
    slow = "async def slow_reward(completions, **kwargs):\n    return [7.0 for _ in completions]"
    lines = run_rewards(with_function(slow, tmp_path / "slow"), stdin="😊\nはい\n").stdout.splitlines()
    rows = [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]
    assert [(row["emoji_reward"], row["slow_reward"]) for row in rows] == [("1", "7"), ("0", "7")]


def test_command_line_names_a_mistake(tmp_path):
    rows = [
        ("def my_reward(completion, **kwargs): return [1.0]", "note: my_reward: has no parameter `completions`"),
        ("def my_reward(completions, **kwargs): return {}", "error: rewards.my_reward: returned the dict"),
        ("def my_reward(completions, **kwargs): 1 / 0", "error: rewards.my_reward: raised ZeroDivisionError"),
    ]
    wrong = []
    for i, (function, words) in enumerate(rows):
        said = run_rewards(with_function(function, tmp_path / str(i)), "はい").stderr
        if words not in said or "Traceback" in said:
            wrong.append((function, said))
    assert wrong == []


NEEDS = """
from functools import partial

def words(completions, least: int = 1): return [float(len(str(c[-1]["content"]).split()) >= least) for c in completions]
def right(completions, answer, title): return [1.0 for _ in completions]
def tokens(completion_ids): return [1.0 for _ in completion_ids]
def polite(prompts, completions): return [0.0 for _ in completions]
strict = partial(words, least=3)
"""


def test_each_text_is_scored_on_its_own_with_the_settings_and_what_is_left_out_is_said(tmp_path):
    folder = with_function(NEEDS, tmp_path / "needs")
    (folder / "mine.yaml").write_text("rewards: {words: {weight: 1, least: 2}, owner/judge: {weight: 1}}\n")
    (folder / "more.yaml").write_text("rewards: {words: {least: 3}, length_reward: {target_length: 3}}\n")
    (folder / "wrong.yaml").write_text("rewards:\n  words: {weight: 1, lest: 2}\n")
    rows = [  # arguments, the column of the scores and those of each text, words of stderr
        (["a b", "c"], "words", ["1", "1"], "note: right: needs the column answer, title of the data; not scored here"),
        (["a b", "c"], "strict", ["0", "0"], "note: tokens: needs completion_ids, the tokens that a run samples"),
        (["a b", "c"], "polite", ["0", "0"], "note: polite: the prompt is empty here"),
        (["a b", "c"], "text", ["a b", "c"], "note: answer_reward: needs the column answer of the data"),
        (["a\tb\nc"], "text", ["a⇥b⏎c"], ""),
        (
            ["--config", "mine.yaml", "a b", "c"],
            "words",
            ["1", "0"],
            "note: owner/judge: is a reward model, which only",
        ),
        (["--config", "mine.yaml", "--config", "more.yaml", "a b", "c"], "words", ["0", "0"], ""),
        (["--config", "mine.yaml", "--config", "more.yaml", "abc"], "length_reward", ["1"], ""),
        (["--config", "mine.yaml", "--", "-b -c", "-c"], "words", ["1", "0"], ""),
        (["--config", "wrong.yaml", "a"], None, [], "error: wrong.yaml:2: rewards.words.lest: unknown, did you mean "),
        (["--config", "no.yaml", "a"], None, [], "error: no.yaml: No such file"),
        (["--confg", "a"], None, [], "error: unrecognized arguments: --confg"),
        (["--help"], None, [], ""),
    ]
    wrong = []
    for arguments, column, expected, words in rows:
        result = run_rewards(folder, *arguments)
        header, *lines = [line.split("\t") for line in result.stdout.splitlines()] or [[]]
        got = [line[header.index(column)] for line in lines] if column in header else []
        status = 2 if words.startswith("error") else 0
        one_line = result.stderr.count("\n") == 1 if status else True
        if got != expected or words not in result.stderr or result.returncode != status or not one_line:
            wrong.append((arguments, result))
    assert wrong == [] and "--config FILE" in result.stdout
