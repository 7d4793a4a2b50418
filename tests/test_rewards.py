"""The rewards, as tables of literal texts. No torch, no trl: this file runs in about a second."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REWARDS, ROOT

import rewards

ROWS = [  # reward, text, its settings or the answer, score
    ("emoji", "", {}, 0),
    ("emoji", "1️⃣", {}, 1),  # a keycap is three code points
    ("emoji", "👨‍👩‍👧‍👦", {}, 1),  # a family is four people joined by ZWJ
    ("emoji", "☆★♪", {}, 0),  # symbols that Japanese texts like, but no emoji
    ("emoji", "😊✨🎉🌸🗻", {}, 4),  # at most
    ("emoji", "😊✨🎉", {"max_emoji": 2}, 2),
    ("length", "あ" * 30, {}, 1),  # characters, not bytes
    ("length", "あ" * 29, {}, math.exp(-0.15)),
    ("length", "あ" * 60, {}, 0.011108996538242306),
    ("length", "あ", {"target_length": 3, "alpha": 1}, math.exp(-2)),
    ("answer", "高さは3776メートルです", {"answer": ["3776メートル"]}, 1),
    ("answer", "答えは42です", {"answer": [42]}, 1),
    ("answer", "高さは３７７６ メートルです", {"answer": ["3776メートル"]}, 1),  # full-width digits, a space
    ("answer", "元素記号はfeです", {"answer": ["Fe"]}, 1),
    ("answer", "パリです", {"answer": ["ロンドン"]}, 0),
    ("answer", "パリです", {"answer": [""]}, 0),  # a row without an answer
    ("answer", "3776です", {"answer": [3776.0]}, 1),
    ("answer", "3,776です", {"answer": [["3193m", 3776.0]]}, 1),  # any of them
    ("answer", "3776です", {"answer": [["", None, float("nan"), 0.5]]}, 0),
    ("answer", " 札幌市", {"answer": ["札幌市"], "f1": True}, 1),
    ("answer", "札幌市か仙台市", {"answer": [["市", "札幌市"]], "f1": True}, 0.6),  # of 3 and 7 characters
    ("answer", "", {"answer": ["札幌市"], "f1": True}, 0),
]


def test_scores_of_texts_and_of_messages():
    others = {"prompts": ["?"], "completion_ids": [[1]], "title": ["t"], "trainer_state": None, "log_metric": print}
    wrong = []
    for name, text, settings, expected in ROWS:
        reward = getattr(rewards, f"{name}_reward")
        (score,) = reward(completions=[text], **settings)
        of_a_message = reward(completions=[[{"role": "assistant", "content": text}]], **settings, **others)
        if score != pytest.approx(expected, rel=1e-12) or of_a_message != [score] or type(score) is not float:
            wrong.append((name, text, settings, score, of_a_message))
    assert wrong == []


def run_rewards(folder, *arguments, stdin="", options=()):
    """(by column the cells of each text, stderr, exit status)"""
    command = [sys.executable, *options, "rewards.py", *arguments]
    result = subprocess.run(command, cwd=folder, input=stdin, capture_output=True, text=True, errors="surrogateescape")
    header, *rows = [line.split("\t") for line in result.stdout.splitlines()] or [[]]
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}, result.stderr, result.returncode


def with_functions(code: str, folder: Path) -> Path:
    """A folder whose rewards.py has more functions."""
    (folder / "harness").symlink_to(ROOT / "harness")
    (folder / "rewards.py").write_text(REWARDS.read_text(encoding="utf-8") + code, encoding="utf-8")
    return folder


def test_command_line_scores_a_text_without_importing_torch(tmp_path):
    scores, err, _ = run_rewards(with_functions("", tmp_path), "富士山は3776mです🗻✨", options=("-X", "importtime"))
    assert scores["emoji_reward"] == ["2"]
    assert float(scores["length_reward"][0]) == pytest.approx(math.exp(-0.15 * 17), rel=1e-3)
    imported = {line.split("|")[-1].strip() for line in err.splitlines()}
    assert "harness.reward" in imported and not {"torch", "trl", "transformers"} & imported


MORE = """
from functools import partial
import asyncio

def words(completions, least: int = 1): return [float(len(str(c[-1]["content"]).split()) >= least) for c in completions]
def right(completions, answer, title): return [1.0 for _ in completions]
def polite(prompts, completions): return [0.0 for _ in completions]
def late(completions, trainer_state): return [trainer_state.global_step / trainer_state.max_steps for _ in completions]
strict = partial(words, least=3)
async def slow(completions, **kwargs):
    await asyncio.sleep(0)
    return [7.0 for _ in completions]
def misspelt(completion, **kwargs): return [1.0]
def wrong(completions, **kwargs): return {}
def raises(completions, **kwargs): 1 / 0
"""
LEFT_OUT = {  # and what is said of it
    "right": "needs answer, title",
    "misspelt": "has no parameter `completions`",
    "wrong": "returned {}",
    "raises": "raised ZeroDivisionError",
}


def test_each_text_is_scored_on_its_own_with_the_settings_and_what_is_left_out_is_said(tmp_path):
    folder = with_functions(MORE, tmp_path)
    (folder / "mine.yaml").write_text("rewards: {words: {weight: 1, least: 2}, owner/judge: {weight: 1}}\n")
    (folder / "more.yaml").write_text("rewards: {words: {least: 3}, length_reward: {target_length: 3}}\n")
    (folder / "wrong.yaml").write_text("rewards:\n  words: {weight: 1, lest: 2}\n")
    mine, more, wrong = ["--config", "mine.yaml"], ["--config", "more.yaml"], ["--config", "wrong.yaml"]
    scores, err, status = run_rewards(folder, "a b", "c\td\n")
    assert scores["words"] == ["1", "1"] and scores["strict"] == ["0", "0"] and scores["slow"] == ["7", "7"]
    assert scores["polite"] == scores["late"] == ["0", "0"] and scores["text"] == ["a b", "c⇥d⏎"]
    assert status == 1  # as some fail
    assert [name for name, words in LEFT_OUT.items() if f"{name}: {words}" not in err or name in scores] == []
    assert "partial" not in {*scores, *err.replace(":", " ").split()} and "Traceback" not in err
    rows = [  # arguments, exit status, the scores of `words`, words of stderr
        ([*mine, "a b", "c"], 1, ["1", "0"], "owner/judge: is a reward model"),
        ([*mine, *more, "a b", "abc"], 1, ["0", "0"], ""),
        ([*mine, "--", "-b -c", "-c"], 1, ["1", "0"], ""),
        ([], 1, ["1", "1", "1"], ""),  # the lines of stdin
        ([*wrong, "a"], 2, None, "error: wrong.yaml:2: rewards.words.lest: unknown, did you mean "),
        (["--config", "no.yaml", "a"], 2, None, "error: no.yaml: "),
    ]
    found = [run_rewards(folder, *arguments, stdin="はい\nx\n3\n") for arguments, *_ in rows]
    assert [(status, scores.get("words")) for scores, _, status in found] == [row[1:3] for row in rows]
    assert [row for row, (_, err, _) in zip(rows, found, strict=True) if row[3] not in err] == []
    (folder / "alone.py").write_text("def alone(completions, a=2): return [float(a)] * len(completions)\n")
    scores, err, status = run_rewards(folder, "--rewards_file", "alone.py", "x")
    assert (status, err, [*scores], scores["alone"]) == (0, "", ["alone", "characters", "text"], ["2"])
    (folder / "null.yaml").write_text("rewards: {length_reward: null}\n")
    only = ["--rewards_file", str(REWARDS), "--config", "null.yaml"]
    scores, err, status = run_rewards(folder, *only, stdin="\udc82あ\n")
    assert (status, [*scores], scores["text"]) == (0, ["emoji_reward", "characters", "text"], ["\\x82あ"])
    assert run_rewards(folder, "--help")[2] == 0
