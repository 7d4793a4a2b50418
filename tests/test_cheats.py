"""What the cheats find in rewards of each kind, ours and others', on one small file of questions."""

import json

from conftest import ROOT
from trl.rewards import get_soft_overlong_punishment, think_format_reward

import train_grpo
from harness.before import cheats
from harness.rewards_file import rewards_py, use
from rewards import answer_reward as right

GUESSED = "pays a list of eight and a denial as"
SAME = "pays a list of eight and the commonest answers in one text and a denial and the question as"
REWARDS = {  # its weight, what stands in its note (None: there is none), and the reward
    "contains": (1, GUESSED, lambda completions, answer: right(completions, answer)),
    "f1": (1, None, lambda completions, answer: right(completions, answer, f1=True)),
    "of_a_list": (1, GUESSED, lambda completions, answers: right(completions, answers)),
    "boxed": (1, GUESSED, lambda completions, boxed: right(completions, [rf"\boxed{{{each}}}" for each in boxed])),
    "punished": (-1, GUESSED, lambda completions, answer: [-score for score in right(completions, answer)]),
    "letter": (1, SAME, lambda completions, letter: right(completions, letter)),
    "number_reward": (1, "pays a denial as", None),
    "nothing": (1, "pays no value of answer more", lambda completions, answer: [0.0] * len(answer)),
    "forbidden": (-1, None, lambda completions, answer: right(completions, answer)),
    "a_judge": (1, "not asked", lambda completions, answer: [0.0, 1.0]),  # two, of check_reward; of more it would fail
    "constant": (1, None, lambda completions, level: right(completions, level)),
    "canary": (0, None, lambda completions, answer: right(completions, answer)),
    "soft": (1, None, get_soft_overlong_punishment(16, 4)),  # reads no column
    "think": (1, None, think_format_reward),
}


def test_each_reward_has_one_note_or_none(tiny, tmp_path, monkeypatch, capsys):
    use(maths := ROOT / "examples/maths_rewards.py")
    module = rewards_py()
    vars(module).update({name: reward for name, (_, _, reward) in REWARDS.items() if reward})
    entries = dict.fromkeys(("emoji_reward", "length_reward", "answer_reward"))
    entries |= {name: {"weight": weight} for name, (weight, _, _) in REWARDS.items()}
    rows = []
    for n in range(40):
        row = {"query": f"a, b, c or d? {n * 'x'}", "level": 1, "letter": "abcd"[n % 4], "answer": str(1000 + 7 * n)}
        rows.append(row | {"boxed": row["answer"], "answers": [row["answer"], "that"]})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = [f"--dataset.data_files={tmp_path / 'rows.jsonl'}", f"--rewards={json.dumps(entries)}"]
    data += [f"--rewards_file={maths}", "--training.max_completion_length=120"]  # in which the 30 answers have no room
    check = [*tiny, *data, "--check"]
    train_grpo.main(check)
    lines = [line.split(" ", 2) for line in capsys.readouterr().out.splitlines() if line.startswith("cheats: ")]
    assert [name for _, name, _ in lines] == [name for name, (_, words, _) in REWARDS.items() if words]
    assert [line for line in lines if REWARDS[line[1]][1] not in line[2]] == []
    module.contains = lambda completions, answer: [len(str(c)) / (len(str(c)) < 70) for c in completions]  # no list
    train_grpo.main(check)
    said = capsys.readouterr().out
    assert "cheats: on a text made from the rows, " in said and "rewards.contains: raised ZeroDivisionError" in said
    monkeypatch.setattr(cheats, "SLOW", -1)
    train_grpo.main(check)
    assert "cheats: contains is not asked further" in capsys.readouterr().out
