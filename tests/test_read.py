"""Reading what a real tiny run sampled: the right rows, whole, in the right order."""

import json
import os
import re
import shutil
import signal

import pandas as pd
import pytest
from conftest import tiny_arguments
from trl import GRPOTrainer

import train_grpo
from harness.errors import Stopped, UserError
from harness.tools import read

KEPT = ["--training.log_completions", "true"]
GROUP, SCORES = re.compile(r"^step (\d+), group (\d+) of 4 ─", re.MULTILINE), re.compile(r"\((total .*?)\)", re.DOTALL)


def stops_in_step(number: int):
    """training_step, with a SIGTERM in that step."""
    step = GRPOTrainer.training_step

    def stops(self, *args, **kwargs):
        if self.state.global_step + 1 == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    return stops


@pytest.fixture(scope="module")
def resumed(policy, tmp_path_factory):
    """Of 4 steps, stopped in the third and resumed: in mid-batch, so that TRL keeps no completions of the fourth."""
    folder = tmp_path_factory.mktemp("read")
    arguments = [*tiny_arguments(policy, folder), *KEPT, "--samples.held_out", "0"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match="checkpoint-3 is complete"):
        patch.setattr(GRPOTrainer, "training_step", stops_in_step(3))
        train_grpo.main(arguments)
    train_grpo.main([*arguments, "--resume"])
    return folder / "run"


@pytest.fixture(scope="module")
def run(resumed, tmp_path_factory):
    """The same, and TRL's empty file of the fourth, as an older run has left it."""
    folder = shutil.copytree(resumed, tmp_path_factory.mktemp("read") / "run")
    rows = pd.read_parquet(folder / "completions/completions_00003.parquet")
    empty = rows[["step", "prompt", "completion", "advantage"]].head(0)
    empty.to_parquet(folder / "completions/completions_00004.parquet")
    return folder


@pytest.fixture
def shown(run, capsys):
    def show(*arguments: str) -> str:
        read.main([str(run), *arguments])
        return capsys.readouterr().out

    return show


def kept(run, step: int) -> pd.DataFrame:
    """The step's rows as TRL wrote them, with what a group of 4 and the demo's weights make of them."""
    rows = pd.read_parquet(run / f"completions/completions_{step:05d}.parquet")
    total = rows.emoji_reward + 2 * rows.length_reward + 4 * rows.answer_reward
    return rows.assign(total=total, group=[1 + i // 4 for i in range(len(rows))])


def test_groups_come_by_the_spread_of_the_total_and_are_whole(run, shown):
    rows, text = kept(run, 3), shown("--groups", "2")  # of the last step that was kept
    spread = rows.groupby("group").total.agg(lambda group: group.max() - group.min()).sort_values(ascending=False)
    assert GROUP.findall(text) == [("3", str(group)) for group in spread.index[:2]]
    expected = rows[rows.group == spread.index[0]].sort_values("total", ascending=False)
    first = "".join(GROUP.split(text)[3].split())  # wrapped at 80 columns: without white space
    assert len(SCORES.findall(text)) == 8 and "".join(expected.prompt.iloc[0][-1]["content"].split()) in first
    place = 0
    for row in expected.itertuples():
        scores = f"emoji{row.emoji_reward:.2f},length{row.length_reward:.2f},answer{row.answer_reward:.2f}"
        words = f"{row.completion[-1]['content']}(total{row.total:.2f},{scores};advantage{row.advantage:+.2f})"
        place = first.index("".join(words.split()), place) + 1  # in this order


def test_by_another_reward_and_step(run, shown):
    rows = kept(run, 1)
    spread = rows.groupby("group").length_reward.agg(lambda group: group.min() - group.max()).sort_values()
    text = shown("--step", "1", "--sort", "length_reward", "--groups", "9")
    assert GROUP.findall(text) == [("1", str(group)) for group in spread.index]
    assert list(spread.index) != list(rows.groupby("group").total.agg(lambda g: g.min() - g.max()).sort_values().index)


def test_the_worst_completions_of_a_reward(run, shown):
    for steps, arguments in (((3,), ["--step", "3"]), ((1, 2, 3), [])):
        text = shown("--worst", "length_reward", "--groups", "5", *arguments)
        worst = [float(re.search(r"length ([\d.]+)", " ".join(scores.split()))[1]) for scores in SCORES.findall(text)]
        scores = sorted(score for step in steps for score in kept(run, step).length_reward)
        assert worst == [round(score, 2) for score in scores[:5]]


def test_of_equal_scores_those_of_other_groups_and_of_late_steps_come_first(run, shown, tmp_path, capsys):
    rows = kept(run, 3).drop(columns=["total", "group"])
    rows.emoji_reward = [0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]
    folder = with_rows(rows, run, tmp_path)
    rows.assign(step=2).to_parquet(tmp_path / "completions/completions_00002.parquet")
    read.main([folder, "--worst", "emoji_reward", "--groups", "9"])
    order = [(3, 1), (3, 2), (3, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 3), (2, 1)]
    assert GROUP.findall(capsys.readouterr().out) == [(str(step), str(group)) for step, group in order]


def test_the_columns_that_a_reward_uses_are_beside_the_completion(run, shown, rows, tmp_path, capsys):
    answers = {row["query"]: row["answer"] for row in rows}
    assert {file.answer for step in (1, 3) for file in kept(run, step).itertuples()} <= set(answers.values())
    worst = kept(run, 3).nsmallest(1, "length_reward").iloc[0]
    question = worst.prompt[-1]["content"]
    for text in (shown("--groups", "9"), shown("--worst", "length_reward", "--step", "3")):
        assert f"{question}\nanswer: {answers[question]}\n\n" in text
    mixed = kept(run, 3).drop(columns=["total", "group"])
    mixed["found"] = [str(i) for i in range(len(mixed))]  # by a reward's own log_extra, for each completion
    mixed.answer = [None] * 4 + list(mixed.answer[4:])
    read.main([with_rows(mixed, run, tmp_path), "--groups", "9"])
    text = capsys.readouterr().out
    assert text.count("\nfound: ") == 16 and text.count("\nanswer: ") == 3


def test_an_evaluation_takes_no_steps_place_and_the_terminal_is_left_alone(tiny, tmp_path, capsys):
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": 2, "per_device_eval_batch_size": 16}
    every = [f"--training.{key}={value}" for key, value in evaluated.items()]
    train_grpo.main([*tiny, *KEPT, *every, "--samples.held_out", "8"])
    out = capsys.readouterr().out
    assert "evaluation" in out and "Step 1 ─" not in out  # the head of its table
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").open(encoding="utf-8")]
    held_out = {sample["question"] for sample in samples if sample["held_out"]}
    for step in (1, 2, 3, 4):
        rows = kept(tmp_path / "run", step)
        assert len(rows) == 16 and not held_out & {prompt[-1]["content"] for prompt in rows.prompt}, step


def with_rows(rows: pd.DataFrame, run, folder):
    """A run in `folder` that kept these rows."""
    (folder / "completions").mkdir(exist_ok=True)
    rows.to_parquet(folder / "completions/completions_00003.parquet")
    (folder / "config.yaml").write_text((run / "config.yaml").read_text())
    return str(folder)


def test_long_completions_are_wrapped_and_not_cut(run, tmp_path, capsys):
    rows = kept(run, 3).drop(columns=["total", "group"])
    rows.completion = [[{"role": "assistant", "content": "[b]山" * 100 + f"終{i}"}] for i in range(len(rows))]
    read.main([with_rows(rows, run, tmp_path), "--groups", "4"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80 and text.replace("\n", "").count("[b]山" * 100 + "終") == 16


def test_a_reward_that_did_not_apply_and_two_groups_with_one_prompt(run, tmp_path, capsys):
    rows = kept(run, 3).drop(columns=["total", "group"])
    rows.loc[:3, "answer_reward"] = None
    rows.prompt = [rows.prompt[0]] * len(rows)
    folder = with_rows(rows, run, tmp_path)
    read.main([folder, "--groups", "9"])
    text = capsys.readouterr().out
    assert len(GROUP.findall(text)) == 4 and text.count("answer –") == 4
    read.main([folder, "--worst", "answer_reward", "--groups", "16"])
    assert len(SCORES.findall(capsys.readouterr().out)) == 12


def refused(folder, *arguments: str) -> str:
    """What it says, of a UserError; another error as it is."""
    try:
        read.main([str(folder), *arguments])
    except UserError as error:
        return str(error)
    except Exception as error:
        return repr(error)
    return "is not refused"


def test_a_step_or_score_that_is_not_there_is_named(run, resumed):
    scores = "not among the scores that were kept"
    rows = [
        (resumed, ["--step", "9"], "--step 9: was not kept; there are 3 from 1 to 3"),
        (run, ["--sort", "emoji"], f"emoji: {scores} (total, emoji_reward, length_reward, answer_reward)"),
        (resumed, ["--step", "4"], "--step 4: was not kept; there are 3 from 1 to 3"),  # the rest of a batch
        (run, ["--step", "4"], f"total: {scores} (); name one, or another --step"),
    ]
    found = [refused(folder, *arguments) for folder, arguments, _ in rows]
    assert [(row[1], said) for row, said in zip(rows, found, strict=True) if not said.startswith(row[2])] == []


def test_what_cannot_be_read_is_one_line(run, tmp_path):
    whole = (run / "completions/completions_00003.parquet").read_bytes()
    unreadable = "not readable .*; try another run or --step"
    rows = [  # what was kept, config.yaml, and what is said; None: is missing
        ("nothing", None, None, "no completions were kept; train with training.log_completions: true"),
        ("half a file", whole[:100], "{training: {}, rewards: {}}", unreadable),
        ("no config", whole, None, "no run .no config.yaml.; name an output_dir that was trained into"),
        ("no yaml", whole, "a: [", "its config.yaml is damaged; .*"),
    ]
    wrong = []
    for name, completions, config, words in rows:
        (folder := tmp_path / name).mkdir()
        if completions is not None:
            (folder / "completions").mkdir()
            (folder / "completions/completions_00003.parquet").write_bytes(completions)
        if config is not None:
            (folder / "config.yaml").write_text(config)
        if not re.fullmatch(f"{folder}: {words}", said := refused(folder)):
            wrong.append((name, said))
    assert wrong == []
