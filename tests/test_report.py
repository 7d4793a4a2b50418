"""The report of a real tiny run: what it leaves, and that it tells the truth."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, draw_curves
from huggingface_hub import ModelCard
from matplotlib.image import imread
from transformers import AutoTokenizer

import rewards
import train_grpo
from harness.after.report import pause, refuted
from harness.before.data import load_data
from harness.during.progress import log_line
from harness.errors import UserError
from harness.settings import read_settings
from harness.tools import chat, compare


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory):
    """Eight steps: enough that the policy's answers change."""
    folder = tmp_path_factory.mktemp("report") / "run"
    arguments = ["--config", str(ROOT / "demo/config.yaml"), "--model.pretrained_model_name_or_path", policy]
    arguments += ["--dataset.data_files", str(ROOT / "demo/questions.jsonl"), "--training.output_dir", str(folder)]
    arguments += [
        "--training.max_steps",
        "8",
        "--training.max_completion_length",
        "24",
        "--training.logging_steps",
        "1",
    ]
    arguments += ["--training.per_device_train_batch_size", "16", "--training.report_to", "tensorboard"]
    train_grpo.main(arguments)
    return folder


def samples(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").open(encoding="utf-8")]


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_both_sides_of_every_question_are_kept_and_scored(run):
    rows = samples(run)
    assert [row["held_out"] for row in rows] == [False] * 3 + [True] * 64
    assert rows[0]["question"] == "富士山の高さは?"
    assert any(row["before"]["completion"] != row["after"]["completion"] for row in rows)
    for row in rows:
        for side in ("before", "after"):
            scores = row[side]["rewards"]
            assert set(scores) == {"emoji_reward", "length_reward", "answer_reward"}
            assert (scores["answer_reward"] is None) is not row["held_out"]  # our own questions have no answer column


def test_held_out_rows_are_not_trained_on(run, policy):
    settings = read_settings(["--config", str(run / "config.yaml")])
    data = load_data(settings, AutoTokenizer.from_pretrained(policy))
    assert not set(data.train["query"]) & set(data.held_out["query"])
    assert len(data.train) + len(data.held_out) == 291
    assert [row["question"] for row in samples(run) if row["held_out"]] == list(data.held_out["query"])


def test_the_full_record_goes_to_the_tracker(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = run.rglob("events.out.tfevents*")
    accumulator = EventAccumulator(str(events)).Reload()
    assert {"train/rewards/emoji_reward/mean", "train/completions/mean_characters"} <= set(
        accumulator.Tags()["scalars"]
    )


def test_the_model_card_is_valid_and_complete(run):
    card = ModelCard.load(run / "README.md")
    card.data.to_dict()
    assert {"trl", "grpo"} <= set(card.data.tags) and card.data.library_name == "transformers"
    text = card.text
    assert "Unfinished" not in text and "8 of 8" in text and "shao2024deepseekmath" in text
    assert [row["question"] in text for row in samples(run)][: 3 + 8 + 1] == [True] * (3 + 8) + [False]


def test_a_run_without_a_reference_model_has_no_panel_of_its_kl(tmp_path):
    log = {"step": 1, "reward": 1.0, "rewards/a/mean": 1.0, "completions/mean_length": 9.0}
    heights = []
    for history in ([log], [log | {"kl": 0.1}]):
        draw_curves({"run": history}, {"a": "what it measures"}, tmp_path / "curves.png")
        heights.append(imread(tmp_path / "curves.png").shape[0])
    assert heights[1] == pytest.approx(heights[0] * 3 / 2, abs=1)  # five panels instead of four, in rows of two


@pytest.mark.draws
def test_the_effective_config_repeats_the_run_and_its_curves_are_drawn(run, tmp_path):
    train_grpo.main(["--config", str(run / "config.yaml"), "--training.output_dir", str(tmp_path / "again")])
    losses = [[log["loss"] for log in history(folder) if "loss" in log] for folder in (run, tmp_path / "again")]
    assert len(losses[0]) == 8 and losses[0] == losses[1]
    picture = imread(tmp_path / "again/reward_curves.png")
    height, width = picture.shape[:2]
    assert width > 1000 and height > 800
    assert 0.01 < (picture[..., :3].min(axis=-1) < 0.9).mean() < 0.5  # neither blank nor black


def test_a_run_that_is_stopped_leaves_its_samples_and_a_card_that_says_so(run, tiny, tmp_path, policy, monkeypatch):
    from trl import GRPOTrainer

    step = GRPOTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "training_step", interrupted)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    stops = [i for i in range(len(tokenizer)) if "。" in tokenizer.decode([i])]
    with pytest.raises(KeyboardInterrupt):
        train_grpo.main(
            [*tiny, "--training.save_steps", "2", f"--training.generation_kwargs={{suppress_tokens: {stops}}}"]
        )
    assert "**Unfinished" in (tmp_path / "run/README.md").read_text()
    rows = samples(tmp_path / "run")
    assert rows and all(row["before"] and row["after"] is None for row in rows)
    # They are generated with the run's own generation_kwargs.
    assert any("。" in row["before"]["completion"] for row in samples(run))
    assert not any("。" in row["before"]["completion"] for row in rows)


TWICE = """
import sys
import train_grpo, harness.after.report
from harness.end import exit_status
harness.after.report.draw_curves = lambda *_: None
sys.exit(exit_status(lambda: [train_grpo.main(sys.argv[1:] + more) for more in (["--rehearse", "--keep"], [])]))
"""


def test_two_processes_rehearse_and_report_once(tiny, tmp_path):
    (tmp_path / "twice.py").write_text(TWICE)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        str(tmp_path / "twice.py"),
        *tiny,
    ]
    command += ["--training.ddp_backend", "gloo", "--training.per_device_train_batch_size", "4"]
    more = {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | more)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Worst case: ") == 1
    assert {path.name for path in tmp_path.glob("run*")} == {"run-rehearsal.json", "run"}
    assert result.stdout.count("2 prompts x 4 = 8 completions") == 2  # both plans, once, counting both processes
    rows = samples(tmp_path / "run")
    assert len(rows) == 3 + 64 and all(row["before"] and row["after"] for row in rows)


def test_a_warning_of_a_fall_is_refuted_by_the_held_out_answers_alone():
    fell, same = [(1, 0)] * 16 + [(1, 1)] * 16, [(1, 1)] * 16 + [(0, 0)] * 16
    rows = [  # (before, after) of each answer, and whether that refutes a fall by a quarter
        (fell, False),
        (same, True),
        ([*same[:-2], (1, 0), (0, 1)], True),
        ([(1, 1)] * 12 + [(1, 0)] * 3, False),  # it fell by a fifth, and may have fallen by a third
        (same[:7], False),  # too few
    ]
    sides = ("before", "after")
    found = []
    for pairs, _ in rows:
        scored = [{side: {"rewards": {"a": score}} for side, score in zip(sides, pair, strict=True)} for pair in pairs]
        others = [{side: {"rewards": {"a": 1 - (side == "after")}} for side in sides}] * 99  # not held out
        others = [sample | {"held_out": False} for sample in others]
        found.append(refuted([sample | {"held_out": True} for sample in scored] + others, {"a": 1}, 1 / 4))
    assert [bool(each) for each in found] == [expected for _, expected in rows]


def test_what_the_held_out_answers_refute_is_not_on_the_card(tiny, tmp_path, monkeypatch, capsys):
    said = [("rewards/length_reward", "length fell"), ("cut", "answers are cut")]
    monkeypatch.setattr("harness.during.watch.Watch._looks_wrong", lambda *_: said)
    train_grpo.main([*tiny, "--training.max_steps", "1", "--training.learning_rate", "1e-6"])
    printed, card = capsys.readouterr().out, (tmp_path / "run/README.md").read_text()
    assert (printed.count("length fell"), printed.count("answers are cut")) == (1, 2)  # in the log, and at the end
    assert "length fell" not in card and "answers are cut" in card


def test_how_often_curves_are_drawn():
    assert [pause(seconds) for seconds in (0.1, 0.4, 2, 10)] == [20, 60, 60, 200]


def test_log_line():
    state = SimpleNamespace(global_step=40, max_steps=1250)
    logs = {
        "reward": 1.5, "rewards/emoji_reward/mean": 1.25, "completions/mean_length": 100.0,
        "completions/mean_characters": 140.4, "completions/clipped_ratio": 0.0625, "kl": 0.0123, "step_time": 2.0,
    }  # fmt: skip
    assert log_line(state, logs, 64) == (
        "step 40/1250  reward 1.50  emoji 1.25 | 100 tokens, 140 characters, 6% cut off | KL 0.0123 | 3,200 tokens/s"
    )


@pytest.mark.draws
def test_the_last_lines_are_commands_that_work_also_of_a_report_that_cannot_be_written(
    tiny, tmp_path, monkeypatch, capsys
):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)  # from another folder than the project's
    monkeypatch.setattr("harness.after.report.draw_curves", full)
    folder = tmp_path / "実験 1's"
    train_grpo.main([*tiny, "--training.output_dir", str(folder)])
    said = capsys.readouterr().out
    assert said.count("the report is incomplete: OSError") == 2  # at once, and at the end
    *_, model, talk, compared, go_on, warning, verdict = said.splitlines()
    assert model == f"the model:   {folder}" and re.match(r"\w+( \w+)?: ", verdict)
    assert warning.startswith("warning: step 1: the report is incomplete")

    done = subprocess.run(compared.split(":", 1)[1], shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and " all 4 " in done.stdout, done.stderr
    # The others without a new process, which costs ten times what they do: as the shell takes them apart.
    start = shlex.split(compared.split(":", 1)[1])[:-2]  # PYTHONPATH=..., python, -m, harness
    command = shlex.split(talk.split(":", 1)[1])
    assert command[:-1] == [*start, "chat"]
    monkeypatch.setattr("sys.stdin", io.StringIO("富士山の高さは?\n"))
    chat.main(command[-1:])
    assert "trained" in capsys.readouterr().out
    python, script, *arguments = shlex.split(go_on.split(":", 1)[1])
    assert python == start[1] and Path(script).samefile(ROOT / "train_grpo.py")
    more = ["--training.max_steps", "2", "--training.output_dir", str(tmp_path / "more")]
    train_grpo.main([*arguments, *more])
    assert "go on:" in capsys.readouterr().out


@pytest.mark.draws
def test_compare_lays_runs_over_each_other(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delattr(rewards, "emoji_reward")  # renamed since the run
    other = Path(shutil.copytree(run, tmp_path / "other"))
    (other / "rewards.py").write_text((run / "rewards.py").read_text() + "x = '[/INST]', [1]\n")
    state = json.loads((run / "trainer_state.json").read_text())
    state["stateful_callbacks"]["Report"]["attributes"]["seconds"] = 600  # before a resume and after it
    (other / "trainer_state.json").write_text(json.dumps(state))
    compare.main([str(run), str(other)])
    table = capsys.readouterr().out
    assert "emoji" in table and "minutes" in table and " 10.0 " in table and table.count(": learned: emoji +") == 2
    assert "x = '[/INST]', [1]" in table  # as it stands, although it looks like rich's markup
    assert not list(tmp_path.glob("*.png"))  # only on request
    compare.main([str(run), "-o", "mine.png"])
    assert (tmp_path / "mine.png").stat().st_size > 10_000


def test_a_tool_is_started_by_its_name():
    starts = [  # arguments of python -m harness, its exit status, words of what it prints
        (["compare", "nowhere"], 2, "error: nowhere: holds no run"),
        (["compair", "nowhere"], 2, "error: compair: no such tool; there are chat, compare, "),
        (["compare", "--help"], 0, "usage: python -m harness compare "),
        ([], 0, "python -m harness chat outputs/a"),
    ]
    for arguments, status, words in starts:
        result = subprocess.run([sys.executable, "-m", "harness", *arguments], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == status and words in result.stdout + result.stderr, arguments
        assert "Traceback" not in result.stderr


def test_compare_reads_a_folder_without_its_rewards_or_samples(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    for name in ("rewards.py", "samples.jsonl", "run.json"):
        folder = shutil.copytree(run, tmp_path / name)
        (folder / name).unlink()
        compare.main([str(run), str(folder)])
        out = capsys.readouterr().out
        assert str(folder) in out and ("not there" in out) is (name == "rewards.py"), (name, out[-600:])


def test_compare_names_a_folder_it_cannot_read(tmp_path):
    wrong = []
    for content in (None, "", "{", "[]", '{"log_history": []}'):
        if content is not None:
            (tmp_path / "trainer_state.json").write_text(content)
        try:
            compare.main([str(tmp_path)])
            wrong.append((content, "is not refused"))
        except Exception as error:
            if not (isinstance(error, UserError) and str(error).startswith(str(tmp_path))):
                wrong.append((content, repr(error)))
    assert wrong == []
