"""The report of a real tiny run: what it leaves, and that it tells the truth."""

import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, tiny_arguments, weights
from forked import two
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

import rewards
import train_grpo
from harness.before.data import load_data
from harness.run_folder import RunFolder
from harness.settings import read_settings
from harness.tools import chat, compare


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """Eight steps: enough that the policy's answers change."""
    folder = tmp_path_factory.mktemp("report")
    more = {"max_steps": 8, "num_generations": 8, "per_device_train_batch_size": 64, "steps_per_generation": 1}
    more |= {"max_completion_length": 24, "report_to": "tensorboard"}
    train_grpo.main([*tiny_arguments(policy, folder), *(f"--training.{key}={value}" for key, value in more.items())])
    return folder / "run"


def test_both_sides_of_every_question_are_kept_and_scored_and_none_is_trained_on(run, policy):
    rows = RunFolder(run).samples()
    assert [row["held_out"] for row in rows] == [False] * 3 + [True] * 64 and rows[0]["question"] == "富士山の高さは?"
    assert any(row["before"]["completion"] != row["after"]["completion"] for row in rows)
    for row in rows:
        for side in ("before", "after"):
            scores = row[side]["rewards"]
            assert set(scores) == {"emoji_reward", "length_reward", "answer_reward"}
            assert (scores["answer_reward"] is None) is not row["held_out"]  # our own questions have no answer column
    data = load_data(read_settings(["--config", str(run / "config.yaml")]), AutoTokenizer.from_pretrained(policy))
    assert [row["question"] for row in rows if row["held_out"]] == list(data.held_out["query"])


def test_the_model_card_is_valid_and_complete_and_the_tracker_has_the_full_record(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = run.rglob("events.out.tfevents*")
    found = EventAccumulator(str(events)).Reload().Tags()["scalars"]
    assert {"train/rewards/emoji_reward/mean", "train/completions/mean_characters"} <= set(found)
    card = ModelCard.load(run / "README.md")
    card.data.to_dict()
    assert {"trl", "grpo"} <= set(card.data.tags) and card.data.library_name == "transformers"
    text = card.text
    assert "Unfinished" not in text and "8 of 8" in text and "shao2024deepseekmath" in text
    assert not re.search(r"[`'\"( ]/\w", text)  # no absolute path
    assert [row["question"] in text for row in RunFolder(run).samples()][: 3 + 8 + 1] == [True] * (3 + 8) + [False]


def test_two_processes_rehearse_once(tiny, tmp_path):
    processes = two([*tiny, "--training.per_device_train_batch_size", "4", "--rehearse"], tmp_path / "ends")
    assert [process.wait() for process in processes] == [0, 0], [process.err for process in processes]
    said = "".join(process.out for process in processes)
    assert said.count("Worst case: ") == said.count("2 prompts x 4 = 8 completions") == 1  # of both processes
    assert not (tmp_path / "run").exists()


@pytest.mark.draws
def test_the_last_lines_are_commands_also_where_the_report_cannot_be_written(tiny, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)  # from another folder than the project's
    monkeypatch.setattr("harness.after.report.draw_curves", full)
    folder = tmp_path / "実験 1's"
    train_grpo.main([*tiny, "--training.output_dir", str(folder)])
    said = capsys.readouterr().out
    assert said.count("the report is incomplete: OSError") == 2  # at once, and at the end
    *_, model, talk, compared, go_on, warning, verdict = said.splitlines()
    assert model == f"the model:   {folder}" and re.match(r"\w+ in this run: ", verdict)
    assert warning.startswith("warning: step 1: the report is incomplete")

    done = subprocess.run(compared.split(":", 1)[1], shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and " 4 steps " in done.stdout, done.stderr
    monkeypatch.setattr("sys.stdin", io.StringIO("富士山の高さは?\n"))
    assert talk.split(":", 1)[1].replace(" chat ", " compare ") == compared.split(":", 1)[1]
    chat.main(shlex.split(talk.split(" chat ")[1]))
    assert "trained" in capsys.readouterr().out
    train_grpo.main(shlex.split(go_on.split("train_grpo.py ")[1]))
    assert weights(Path(f"{folder}-more")) != weights(folder)


@pytest.mark.draws
def test_compare_lays_runs_over_each_other(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delattr(rewards, "emoji_reward")  # renamed since the run
    other = Path(shutil.copytree(run, tmp_path / "other"))
    (other / "rewards.py").write_text((run / "rewards.py").read_text() + "x = '[/INST]', [1]\n")
    compare.main([str(run), str(other)])
    table = capsys.readouterr().out
    assert "emoji" in table and "minutes" in table and table.count(": learned in this run: emoji +") == 2
    assert "x = '[/INST]', [1]" in table  # as it stands, although it looks like rich's markup
    assert not list(tmp_path.glob("*.png"))  # only on request
    compare.main([str(run), "-o", "mine.png"])
    assert (tmp_path / "mine.png").stat().st_size > 10_000


def test_a_tool_is_started_by_its_name():
    starts = [  # arguments of python -m harness, its exit status, words of what it prints
        (["compare", "nowhere"], 2, "error: nowhere: holds no run"),
        (["compair", "nowhere"], 2, "error: compair: no such tool; there are chat, compare, "),
        ([], 0, "python -m harness chat outputs/a"),
    ]
    for arguments, status, words in starts:
        result = subprocess.run([sys.executable, "-m", "harness", *arguments], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == status and words in result.stdout + result.stderr, arguments
        assert "Traceback" not in result.stderr
