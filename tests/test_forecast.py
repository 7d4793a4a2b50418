"""Would one fixed text win? Said of completions and rewards as they may be, and in real runs of the tiny policy."""

import zlib

import pandas as pd
from transformers import AutoTokenizer, TrainerState

import rewards
import train_grpo
from harness.before.forecast import forecast, in_words
from harness.reward import Reward


def blind(text, answer):
    return len(text)


def right(text, answer):
    return float(answer in text.split())


def of_some(text, answer):
    return len(text) if answer > "q2" else None


def raises(text, answer):
    raise KeyError(text)


def judge(text, answer):
    raise AssertionError("it was asked")


def reward(of_text, weight):
    def function(completions, answer):
        return [of_text(each[-1]["content"], one) for each, one in zip(completions, answer, strict=True)]

    return Reward(of_text.__name__, weight, {}, function)


EACH = [[f"q{i}", "both", f"no q{i}", "long no"] for i in range(6)]  # for question i, to which qi is right
LUCKY = [["no", "no", "no", "q0" if i == 0 else "no"] for i in range(6)]
YES_NO = [["yes", "no", "no", "no"]] * 6
OWN = "q0 q1 q2 q3 q4 q5"
GOOD, WINS, NONE = (
    "good: no fixed text wins",
    "warning: one fixed text would score ",
    "no forecast whether one fixed text ",
)
ROWS = [
    (EACH, {blind: 1}, OWN, WINS + "7 on every question (the policy 4.5, its best of 4 7)"),
    (
        EACH,
        {right: 1},
        OWN,
        GOOD + "; the best of 14 would score 0 on every question (the policy 0.5, its best of 4 1)",
    ),
    (EACH, {right: 9, blind: 1}, OWN, GOOD),
    (
        EACH,
        {right: 1, blind: 1},
        OWN,
        "note: one fixed text would score 7 on every question (the policy 5, its best of 4 7), though right (which",
    ),
    (EACH, {right: 0, blind: 1}, OWN, WINS),
    (EACH, {blind: 1, judge: 1}, OWN, "more weight; judge not asked, as that may cost\n    the text: long no"),
    (EACH, {judge: 1}, OWN, NONE + "wins: no other reward has a weight; judge not asked"),
    (EACH, {of_some: 1}, OWN, NONE + "wins: only on 3 of 6 questions do completions score differently"),
    (EACH, {raises: 1, blind: 1}, OWN, NONE + "wins: rewards.raises: raised KeyError"),
    (
        LUCKY,
        {right: 1},
        OWN,
        NONE + "wins: only on 1 of 6 questions",
    ),  # or "q0", as bad as the best elsewhere, would win
    (YES_NO, {right: 1}, "yes yes yes yes yes yes", WINS + "1 on every question (the policy 0.25, its best of 4 1)"),
    (YES_NO, {right: 1}, "yes yes yes no no no", GOOD),
]


def test_where_one_fixed_text_wins(policy, tmp_path):
    tokenizer, wrong = AutoTokenizer.from_pretrained(policy), []
    for completions, weights, answers, words in ROWS:
        train = [{"prompt": [{"role": "user", "content": f"{i}?"}], "answer": a} for i, a in enumerate(answers.split())]
        logged = [
            {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": text}]}
            | {each.__name__: 0.0 if each in (judge, raises) else each(text, row["answer"]) for each in weights}
            for row, group in zip(train, completions, strict=True)
            for text in group
        ]
        pd.DataFrame(logged).to_parquet(tmp_path / "logged.parquet")  # as TRL does
        given = [reward(of_text, weight) for of_text, weight in weights.items()]
        sampled = pd.read_parquet(tmp_path / "logged.parquet")
        said = in_words(forecast(sampled, given, train, 4, tokenizer, TrainerState()))
        if words not in said:
            wrong.append((words, said))
    assert wrong == []


def test_a_rehearsal_says_so(tiny, monkeypatch, capsys):
    def reads_the_question(completions, prompts, **kwargs):
        pairs = zip(prompts, completions, strict=True)
        return [zlib.crc32(f"{prompt[-1]['content']}{text[-1]['content']}".encode()) / 2**32 for prompt, text in pairs]

    monkeypatch.setattr(rewards, "answer_reward", reads_the_question)
    wrong = []
    for weight, words in (
        ("0", "\n  warning: one fixed text would"),
        ("99", "\n  good: no fixed text wins; the best of "),
    ):
        train_grpo.main([*tiny, "--rehearse", "--rewards.answer_reward.weight", weight])
        if words not in (said := capsys.readouterr().out):
            wrong.append((words, said))
    assert wrong == []
