"""Reading what a real tiny run sampled: the right rows, whole, in the right order."""

import os
import re
import signal

import pandas as pd
import pytest
import yaml
from conftest import tiny_arguments
from trl import GRPOTrainer

import train_grpo
from harness import read
from harness.exits import Stopped, UserError

KEPT = ["--training.log_completions", "true", "--training.num_completions_to_print", "0"]
GROUP, SCORES = re.compile(r"^step (\d+), group (\d+) of 4 ─", re.MULTILINE), re.compile(r"\((total .*?)\)", re.DOTALL)


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("read")
    train_grpo.main([*tiny_arguments(policy, folder), *KEPT, "--training.max_completion_length", "48"])
    return folder / "run"


@pytest.fixture
def shown(run, capsys):
    def show(*arguments: str) -> str:
        read.main([str(run), *arguments])
        return capsys.readouterr().out

    return show


def stops_in_step(number: int):
    """training_step, with a SIGTERM in that step."""
    step = GRPOTrainer.training_step

    def stops(self, *args, **kwargs):
        if self.state.global_step + 1 == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    return stops


def kept(run, step: int) -> pd.DataFrame:
    """The step's rows as TRL wrote them, with what a group of 4 and the demo's weights make of them."""
    rows = pd.read_parquet(run / f"completions/completions_{step:05d}.parquet")
    total = rows.emoji_reward + 2 * rows.length_reward + 4 * rows.answer_reward
    return rows.assign(total=total, group=[1 + i // 4 for i in range(len(rows))])


def test_groups_come_by_the_spread_of_the_total_and_are_whole(run, shown):
    rows, text = kept(run, 4), shown("--groups", "2")
    spread = rows.groupby("group").total.agg(lambda group: group.max() - group.min()).sort_values(ascending=False)
    assert GROUP.findall(text) == [("4", str(group)) for group in spread.index[:2]]
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
    text = shown("--worst", "length_reward", "--groups", "5")
    worst = [float(re.search(r"length ([\d.]+)", " ".join(scores.split()))[1]) for scores in SCORES.findall(text)]
    assert worst == [round(score, 2) for score in sorted(kept(run, 4).length_reward)[:5]]


def test_long_completions_are_wrapped_and_not_cut(run, tmp_path, capsys):
    rows = pd.read_parquet(run / "completions/completions_00004.parquet")
    rows.completion = [[{"role": "assistant", "content": "[b]山" * 100 + f"終{i}"}] for i in range(len(rows))]
    (tmp_path / "completions").mkdir()
    rows.to_parquet(tmp_path / "completions/completions_00004.parquet")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    read.main([str(tmp_path), "--groups", "4"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80 and text.replace("\n", "").count("[b]山" * 100 + "終") == 16


def test_a_reward_that_did_not_apply_and_two_groups_with_one_prompt(run, tmp_path, capsys):
    rows = kept(run, 4).drop(columns=["total", "group"])
    rows.loc[:3, "answer_reward"] = None
    rows.prompt = [rows.prompt[0]] * len(rows)
    (tmp_path / "completions").mkdir()
    rows.to_parquet(tmp_path / "completions/completions_00004.parquet")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    read.main([str(tmp_path), "--groups", "9"])
    text = capsys.readouterr().out
    assert len(GROUP.findall(text)) == 4 and text.count("answer –") == 4
    read.main([str(tmp_path), "--worst", "answer_reward", "--groups", "16"])
    assert len(SCORES.findall(capsys.readouterr().out)) == 12


def test_a_run_that_was_resumed_in_mid_batch_has_a_step_without_completions(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "training_step", stops_in_step(3))
    with pytest.raises(Stopped, match="checkpoint-3 is complete"):
        train_grpo.main([*tiny, *KEPT])
    monkeypatch.undo()
    train_grpo.main([*tiny, *KEPT, "--resume"])
    with pytest.raises(UserError, match="total: not among the scores of this step .*another --step"):
        read.main([str(tmp_path / "run")])
    read.main([str(tmp_path / "run"), "--step", "3"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step", "9"], "--step 9: was not kept; there are 4 from 1 to 4"),
        (["--sort", "emoji"], r"emoji: not among the scores of this step \(total, emoji_reward, length_reward, answer"),
    ],
)
def test_what_is_not_there_is_named(arguments, words, run):
    with pytest.raises(UserError, match=words):
        read.main([str(run), *arguments])


@pytest.mark.parametrize("broken", ["parquet", "config", "yaml"])
def test_what_cannot_be_read_is_one_line(broken, run, tmp_path):
    with pytest.raises(UserError, match="no completions were kept; train with training.log_completions: true"):
        read.main([str(tmp_path)])
    (tmp_path / "completions").mkdir()
    whole = (run / "completions/completions_00004.parquet").read_bytes()
    (tmp_path / "completions/completions_00004.parquet").write_bytes(whole[:100] if broken == "parquet" else whole)
    if broken != "config":
        (tmp_path / "config.yaml").write_text("a: [" if broken == "yaml" else yaml.safe_dump({"training": {}}))
    with pytest.raises(UserError, match=f"^{tmp_path}: not readable .*try another run or --step$"):
        read.main([str(tmp_path)])
