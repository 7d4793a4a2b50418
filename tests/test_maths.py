"""recipes/maths.yaml and the rewards that it names: tables of literal texts, and rows of GSM8K's shape."""

import pytest
from conftest import ROOT
from datasets import Dataset

import rewards as article
import train_grpo
from harness.rewards_file import rewards_py, use

NUMBER = [
    ("It is 72", "72", 1),
    ("72 apples, not 70", "72", 0),  # the last number counts
    ("**$1,234**", "1234", 1),
    ("−3", "-3", 1),  # U+2212
    ("答えは-3です", "-3", 1),
    ("5-3", "3", 1),  # takes away, and is no sign
    (r"$\frac{1}{2}$", "1/2", 1),
    (r"\boxed{72}", "72", 1),
    ("1/0", "1", 0),
    ("9" * 5000, "9", 0),  # Python refuses to read a number of more than 4,300 digits
    ("7２", "72", 1),  # a full-width digit
    ("72", "48/2 = <<48/2=24>>24 clips in May.\n48+24 = <<48+24=72>>72.\n#### 72", 1),  # GSM8K's
    ("72", 72, 1),  # of a JSON file
    ("72", ["71", 72.0, None], 1),  # any of them
    ("72", "blue", None),  # a row to which it does not apply
]
ENDS_IN_NUMBER = [
    ("The sum is 72", 1),
    ("So it is **72**.\n", 1),
    (r"\(\boxed{72}\).", 1),
    ("答えは72。", 1),
    ("Answer: -1,072.50", 1),
    ("72, which is", 0),
    ("", 0),
]


def test_the_rewards_of_the_recipe():
    use(ROOT / "examples/maths_rewards.py")
    maths = rewards_py()
    found = maths.number_reward([text for text, *_ in NUMBER], answer=[answer for _, answer, _ in NUMBER])
    assert [(*row, score) for row, score in zip(NUMBER, found, strict=True) if score != row[2]] == []
    for reward in (maths.number_reward, article.answer_reward):
        with pytest.raises(TypeError, match="text"):
            reward(["72"], answer=[{"text": ["72"]}])
    found = maths.ends_in_number_reward([[{"role": "assistant", "content": text}] for text, _ in ENDS_IN_NUMBER])
    assert [(*row, score) for row, score in zip(ENDS_IN_NUMBER, found, strict=True) if score != row[1]] == []


def test_the_recipe_takes_gsm8ks_columns_as_they_are_and_has_a_verdict(tiny, tmp_path, capsys):
    answer = "She has {0} + 1 = <<{0}+1={1}>>{1} clips.\n#### {1}"
    rows = [{"question": f"{n} and 1 are?", "answer": answer.format(n, n + 1)} for n in range(1000, 1040)]
    Dataset.from_list(rows).to_parquet(tmp_path / "gsm8k.parquet")
    tiny += ["--rewards_file", str(ROOT / "examples/maths_rewards.py")]
    file = [f"--dataset.data_files={tmp_path / 'gsm8k.parquet'}", "--dataset.path=parquet"]  # instead of the Hub's
    train_grpo.main([*tiny, "--config", str(ROOT / "recipes/maths.yaml"), *file, "--dataset.split=train"])
    printed = capsys.readouterr().out
    assert "40 read: 30 to train on, 10 held out" in printed and "1 x number_reward" in printed
    assert "number 0.00 (0.00 to 0.00)" in printed.splitlines()[-1]  # it cannot add; of None no interval
