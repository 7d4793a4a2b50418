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
        ("#1 * 2 = 2, 0-9", 0),  # digits, # and * start keycaps, but are no emoji by themselves
        ("😊", 1),
        ("1️⃣", 1),  # a keycap is three code points
        ("👨‍👩‍👧‍👦", 1),  # a family is four people joined by ZWJ
        ("🇯🇵", 1),  # a flag is two letters
        ("👍🏽", 1),  # a skin tone is a modifier
        ("❤️", 1),  # a heart with its variation selector
        ("☆★♪", 0),  # symbols that Japanese texts like, but no emoji
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
        ("あ" * 60, {}, 0.011108996538242306),
        ("富士山", {"target_length": 3}, 1.0),  # characters, not bytes
        ("あ", {"target_length": 3, "alpha": 1}, math.exp(-2)),
    ]
    found = [rewards.length_reward(completions=[text], **settings) for text, settings, _ in rows]
    assert [(*row, f) for row, f in zip(rows, found, strict=True) if f != [pytest.approx(row[2], rel=1e-12)]] == []


def test_answer_reward():
    rows = [
        ("高さは3776メートルです", "3776メートル", 1),
        ("答えは42です", 42, 1),
        ("高さは３７７６ メートルです", "3776メートル", 1),  # full-width digits, a space
        ("元素記号はfeです", "Fe", 1),
        ("パリです", "ロンドン", 0),
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
    """(by column the cells of each text, stderr, exit status)"""
    command = [sys.executable, *options, "rewards.py", *arguments]
    result = subprocess.run(command, cwd=folder, input=stdin, capture_output=True, text=True)
    header, *rows = [line.split("\t") for line in result.stdout.splitlines()] or [[]]
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}, result.stderr, result.returncode


def with_functions(code: str, folder: Path) -> Path:
    """A folder whose rewards.py has more functions."""
    (folder / "harness").symlink_to(ROOT / "harness")
    mine, main = (ROOT / "rewards.py").read_text(encoding="utf-8").split("if __name__")
    (folder / "rewards.py").write_text(f"{mine}{code}\n\n\nif __name__{main}", encoding="utf-8")
    return folder


def test_command_line_scores_a_text_without_importing_torch():
    scores, err, _ = run_rewards(ROOT, "富士山は3776mです🗻✨", options=("-X", "importtime"))
    assert scores["emoji_reward"] == ["2"]
    assert float(scores["length_reward"][0]) == pytest.approx(math.exp(-0.15 * 17), rel=1e-3)
    imported = {line.split("|")[-1].strip() for line in err.splitlines()}
    assert "harness.reward" in imported and not {"torch", "trl", "transformers"} & imported


MORE = """
from functools import partial, reduce
import asyncio

def words(completions, least: int = 1): return [float(len(str(c[-1]["content"]).split()) >= least) for c in completions]
def right(completions, answer, title): return [1.0 for _ in completions]
def tokens(completion_ids): return [1.0 for _ in completion_ids]
def polite(prompts, completions): return [0.0 for _ in completions]
strict = partial(words, least=3)
async def slow(completions, **kwargs):
    await asyncio.sleep(0)
    return [7.0 for _ in completions]
def misspelt(completion, **kwargs): return [1.0]
def wrong(completions, **kwargs): return {}
def raises(completions, **kwargs): 1 / 0
SCALE = 3
"""
MINE = ["--config", "mine.yaml"]
BOTH = [*MINE, "--config", "more.yaml"]


def test_each_text_is_scored_on_its_own_with_the_settings_and_what_is_left_out_is_said(tmp_path):
    folder = with_functions(MORE, tmp_path)
    (folder / "mine.yaml").write_text("rewards: {words: {weight: 1, least: 2}, owner/judge: {weight: 1}}\n")
    (folder / "more.yaml").write_text("rewards: {words: {least: 3}, length_reward: {target_length: 3}}\n")
    (folder / "wrong.yaml").write_text("rewards:\n  words: {weight: 1, lest: 2}\n")
    some_fail = 1
    rows = [  # arguments, exit status, the scores of some columns, words of stderr
        (["a b", "c"], some_fail, {"words": ["1", "1"], "strict": ["0", "0"], "polite": ["0", "0"]}, []),
        (["a\tb\nc"], some_fail, {"text": ["a⇥b⏎c"], "slow": ["7"]}, ["right: needs answer, title", "answer_reward: "]),
        (["a"], some_fail, {"words": ["1"]}, ["misspelt: has no parameter `completions`", "tokens: raised TypeError"]),
        (["a"], some_fail, {"characters": ["1"]}, ["wrong: returned the dict", "raises: raised ZeroDivisionError"]),
        ([*MINE, "a b", "c"], some_fail, {"words": ["1", "0"]}, ["owner/judge: is a reward model"]),
        ([*BOTH, "a b", "abc"], some_fail, {"words": ["0", "0"], "length_reward": ["1", "1"]}, []),
        ([*MINE, "--", "-b -c", "-c"], some_fail, {"words": ["1", "0"]}, []),
        (["--config", "wrong.yaml", "a"], 2, {}, ["error: wrong.yaml:2: rewards.words.lest: unknown, did you mean "]),
        (["--config", "no.yaml", "a"], 2, {}, ["error: no.yaml: "]),
        (["--confg", "a"], 2, {}, ["unrecognized arguments: --confg"]),
        ([], some_fail, {"words": ["1", "1"]}, []),  # the lines of stdin
    ]
    wrong = []
    for arguments, status, expected, words in rows:
        scores, err, code = run_rewards(folder, *arguments, stdin="はい\nx\n")
        found = {name: scores.get(name) for name in expected}
        left_out = {"right", "tokens", "misspelt", "wrong", "raises", "SCALE", "partial", "reduce"} & set(scores)
        if found != expected or code != status or left_out or "Traceback" in err or any(w not in err for w in words):
            wrong.append((arguments, scores, err, code))
        if "SCALE" in err or "reduce" in err:
            wrong.append(err)
    assert wrong == []
    assert run_rewards(ROOT, "a")[2] == 0 and run_rewards(ROOT, "--help")[2] == 0
