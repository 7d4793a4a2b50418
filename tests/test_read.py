"""Reading what a real tiny run sampled: the right rows, whole, in the right order."""

import re
import shutil

import pandas as pd
import pytest
from conftest import tiny_arguments

import train_grpo
from harness.errors import UserError
from harness.run_folder import RunFolder
from harness.tools import read

KEPT = ["--training.log_completions", "true"]
FILE = "completions/completions_00003.parquet"
GROUP, SCORES = re.compile(r"^step (\d+), group (\d+) of 4 ─", re.MULTILINE), re.compile(r"\((total .*?)\)", re.DOTALL)


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """Of 4 steps, the last after a resume: in mid-batch, where TRL has no completions to keep."""
    folder = tmp_path_factory.mktemp("read")
    arguments = [*tiny_arguments(policy, folder), *KEPT, "--samples.held_out=0", "--training.save_steps=3"]
    train_grpo.main(arguments)
    shutil.rmtree(folder / "run/checkpoint-4")
    (folder / "run/completions/completions_00004.parquet").unlink()
    train_grpo.main([*arguments, "--resume"])
    return folder / "run"


def kept(run, step: int) -> pd.DataFrame:
    """The step's rows as TRL wrote them, with what a group of 4 and the demo's weights make of them."""
    rows = pd.read_parquet(run / f"completions/completions_{step:05d}.parquet")
    total = rows.emoji_reward + 2 * rows.length_reward + 4 * rows.answer_reward
    return rows.assign(total=total, group=[1 + i // 4 for i in range(len(rows))])


def changed(run, folder, **columns):
    """A run in `folder` whose only step has the third's rows, changed."""
    (folder / "completions").mkdir(parents=True, exist_ok=True)
    pd.read_parquet(run / FILE).assign(**columns).to_parquet(folder / FILE)
    shutil.copy(run / "config.yaml", folder)
    return folder


@pytest.fixture
def shown(run, capsys):
    def show(*arguments: str, folder=run) -> str:
        read.main([str(folder), *arguments])
        return capsys.readouterr().out

    return show


def test_groups_come_by_their_spread_and_are_whole(run, shown):
    def by_spread(rows, name: str) -> list[int]:
        return list(rows.groupby("group")[name].agg(lambda group: group.min() - group.max()).sort_values().index)

    last, first = kept(run, 3), kept(run, 1)
    order = by_spread(last, "total")
    text = shown("--step", "1", "--groups", "9")
    assert GROUP.findall(text) == [("1", str(group)) for group in by_spread(first, "total")]
    text = shown("--groups", "2")
    assert GROUP.findall(text) == [("3", str(group)) for group in order[:2]] and len(SCORES.findall(text)) == 8
    text = "".join(GROUP.split(text)[3].split())  # wrapped at 80 columns: without white space
    group = last[last.group == order[0]].sort_values("total", ascending=False)
    place = text.index("".join(group.prompt.iloc[0][-1]["content"].split()))
    for row in group.itertuples():
        scores = f"emoji{row.emoji_reward:.2f},length{row.length_reward:.2f},answer{row.answer_reward:.2f}"
        words = f"{row.completion[-1]['content']}(total{row.total:.2f},{scores},advantage{row.advantage:.2f})"
        place = text.index("".join(words.split()), place) + 1  # in this order


def test_the_worst_completions_of_a_reward(run, shown, tmp_path):
    for steps, arguments in (((3,), ["--step", "3"]), ((1, 2, 3), [])):
        text = shown("--worst", "length", "--groups", "5", *arguments)
        worst = re.findall(r"length\s+([\d.]+),", text)
        scores = sorted(score for step in steps for score in kept(run, step).length_reward)
        assert worst == [f"{score:.2f}" for score in scores[:5]]
    # Of equal scores those of other groups come first, and of these the latest.
    folder = changed(run, tmp_path, emoji_reward=[0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1])
    pd.read_parquet(folder / FILE).assign(step=2).to_parquet(folder / "completions/completions_00002.parquet")
    order = [(3, 1), (3, 2), (3, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 3), (2, 1)]
    text = shown("--worst", "emoji_reward", "--groups", "9", folder=folder)
    assert GROUP.findall(text) == [(str(step), str(group)) for step, group in order] and "12 of 32 with 0.00" in text
    shutil.rmtree(folder / "completions")  # then it is the held-out answers
    answers = [{"completion": f"c{score}", "rewards": {"answer_reward": score}} for score in (3, 1, None, 2)]
    samples = [{"question": "?", "held_out": True, "answer": ["x"], "before": each, "after": each} for each in answers]
    RunFolder(folder).write_samples([*samples, samples[1] | {"held_out": False}])
    text = shown("--worst", "answer", folder=folder)
    assert re.findall(r"c\d", text) == ["c1", "c2", "c3"] and "1 of 3 with 1.00" in text and "answer: ['x']" in text


def test_the_columns_that_a_reward_uses_are_beside_the_completion(run, shown, rows, tmp_path):
    question = kept(run, 3).nsmallest(1, "length_reward").iloc[0].prompt[-1]["content"]
    (answer,) = {row["answer"] for row in rows if row["query"] == question}
    for text in (shown("--groups", "9"), shown("--worst", "length_reward", "--step", "3")):
        assert f"{question}\nanswer: {answer}\n\n" in text
    folder = changed(run, tmp_path, found=[str(i) for i in range(16)])  # by a reward's own log_extra
    text = shown("--groups", "9", folder=folder)
    assert text.count("\nfound: ") == 16 and text.count("\nanswer: ") == 4


def test_what_is_odd_is_shown_as_it_is(run, shown, tmp_path):
    long = [[{"role": "assistant", "content": "[b]山" * 100 + f"終{i}"}] for i in range(16)]
    text = shown("--groups", "4", folder=changed(run, tmp_path, completion=long))
    assert max(map(len, text.splitlines())) <= 80 and text.replace("\n", "").count("[b]山" * 100 + "終") == 16
    rows = kept(run, 3)
    answers = [None] * 4 + list(rows.answer_reward[4:])
    folder = changed(run, tmp_path, answer_reward=answers, prompt=[rows.prompt[0]] * 16)
    text = shown("--groups", "9", folder=folder)  # four groups with one prompt, and a reward that did not apply to one
    assert len(GROUP.findall(text)) == 4 and text.count("answer –") == 4
    assert len(SCORES.findall(shown("--worst", "answer_reward", "--groups", "16", folder=folder))) == 12


def test_an_evaluation_takes_no_steps_place_and_the_terminal_is_left_alone(tiny, tmp_path, capsys):
    every = ["--training.eval_strategy=steps", "--training.eval_steps=1", "--training.num_generations_eval=2"]
    train_grpo.main([*tiny, *KEPT, *every, "--training.per_device_eval_batch_size=16", "--samples.held_out=8"])
    out = capsys.readouterr().out
    assert "evaluation" in out and "Step 1 ─" not in out  # the head of its table
    held_out = {sample["question"] for sample in RunFolder(tmp_path / "run").samples() if sample["held_out"]}
    prompts = pd.concat(kept(tmp_path / "run", step) for step in (1, 2, 3, 4)).prompt
    assert len(prompts) == 64 and not held_out & {prompt[-1]["content"] for prompt in prompts}


def test_what_is_not_there_or_cannot_be_read_is_named(run, tmp_path, capsys):
    half = changed(run, tmp_path / "half")
    (half / FILE).write_bytes((run / FILE).read_bytes()[:99])
    none = changed(run, tmp_path, answer_reward=[float("nan")] * 16)
    rows = [  # a folder, arguments, what is named, and a word
        (run, ["--step", "9"], run, "completions_00009.parquet"),
        (run, ["--worst", "emojis"], "emojis", "total, emoji_reward, length_reward, answer_reward"),
        (none, ["--worst", "answer_reward"], "answer_reward", "no completion"),
        (half, [], half / FILE, "not readable"),
        (tmp_path / "no", ["--worst", "emoji"], tmp_path / "no/config.yaml", "missing"),
    ]
    for folder, arguments, place, word in rows:
        with pytest.raises(UserError, match=f"^{place}: .*{word}"):
            read.main([str(folder), *arguments])
    assert capsys.readouterr().out == ""
