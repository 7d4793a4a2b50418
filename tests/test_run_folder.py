"""The folder of a run: what is written there is read back the same, and what is damaged is named or left out."""

import datetime
import errno
import fcntl
import json
from contextlib import nullcontext

import pytest

from harness.errors import UserError
from harness.run_folder import RunFolder


def test_what_is_written_is_read_back_whatever_it_holds(tmp_path):
    folder = RunFolder(tmp_path)
    samples = [{"question": text, "before": None} for text in ("a\u2028b\x85c", '"\n\r', "富士山🗻", "")]
    folder.write_samples(samples)
    assert folder.samples() == samples
    folder.samples_file.write_bytes(folder.samples_file.read_bytes()[:-3])  # half a file
    assert folder.samples() is None and RunFolder(tmp_path / "none").samples() is None
    for text in ("[]", "3", "{", ""):
        folder.status_file.write_text(text)
        assert folder.status() == {}
    folder.write_status("running", step=3)  # killed: it says when it was last alive
    alive = datetime.datetime.fromisoformat(folder.status()["time"])
    assert folder.status()["step"] == 3 and abs((datetime.datetime.now(datetime.UTC) - alive).total_seconds()) < 60


def test_a_folder_is_tried_as_a_run_takes_it_and_nothing_is_left(tmp_path, monkeypatch, capsys):
    def without_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    for name in ("old", "used"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    rows = [("new/run", None), ("old", None), ("used", "in use"), ("file", "File exists"), ("link", "File exists")]
    rows += [("file/run", "Not a directory"), (f"new/{'x' * 300}", "too long")]  # a word of the error
    with RunFolder(tmp_path / "used").locked():
        before = set(tmp_path.rglob("*"))
        for name, word in rows:
            folder = RunFolder(tmp_path / name)
            with nullcontext() if word is None else pytest.raises(UserError, match=rf"^{folder} .*{word}"):
                assert folder.room() > 0
            assert set(tmp_path.rglob("*")) == before and capsys.readouterr().out == "", name
    monkeypatch.setattr(fcntl, "flock", without_locks)
    folder = RunFolder(tmp_path / "unlocked/run")
    assert folder.room() > 0 and not folder.path.parent.exists() and "note: " in capsys.readouterr().out
    with folder.locked():  # it goes on
        assert folder.status()["status"] == "running"


def test_a_run_begins_in_no_folder_that_holds_a_run_or_what_no_run_has_made(tmp_path):
    folder = RunFolder(tmp_path / "run")
    rows = [("nohup.out", None), ("logs/1", None), ("notes.txt", "notes.txt"), ("_lock_holder", None)]
    for name, word in [*rows, ("checkpoint-2/x", "--resume")]:  # the holder is in the folder of any run that has begun
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).touch()
        found = folder.why_taken()
        assert found is None if word is None else word in found, name


def test_settings_of_a_run_or_what_is_wrong_with_them(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(UserError, match="config.yaml"):
        folder.settings()
    for text in ("", "a: [", "[1]"):
        folder.settings_file.write_text(text)
        with pytest.raises(UserError, match="damaged"):
            folder.settings()
    folder.settings_file.write_text("rewards: {a: {weight: 1}, owner/judge: {weight: 0.5}}")
    assert folder.weights() == {"a": 1, "judge": 0.5}


def test_the_newest_state_of_a_run_is_read_wherever_it_is(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-9-mine", "_set-aside-1-checkpoint-11"):
        (tmp_path / name).mkdir()  # without a state
    assert [path.name for path in RunFolder(tmp_path).checkpoints()] == ["checkpoint-9", "checkpoint-10"]
    rows = [("checkpoint-4", 4), (".", 6), ("checkpoint-8", 8), (".", 12)]  # stopped, at its end, extended, at its end
    for folder, step in rows:
        (tmp_path / folder).mkdir(exist_ok=True)
        state = {"global_step": step, "log_history": [{"reward": 1.0}]}
        (tmp_path / folder / "trainer_state.json").write_text(json.dumps(state))
        assert RunFolder(tmp_path).state()["global_step"] == step
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(UserError, match="trainer_state.json: missing or damaged"):
        RunFolder(tmp_path).state()


def test_a_run_in_the_folder_of_an_earlier_one_has_no_verdict_yet(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_status("done", 0, verdict={"word": "learned"})
    with folder.locked():
        assert folder.status()["verdict"] is None
        folder.write_status("running", verdict={"word": "worse"})
    assert folder.status()["status"] == "done" and folder.status()["verdict"] == {"word": "worse"}
