"""A judge over the network, as a real local HTTP server: it delays, fails and recovers."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from conftest import ROOT, weights

import rewards
import train_grpo
from harness.errors import RewardError, RunError, UserError
from harness.reward import load_rewards
from harness.run_folder import RunFolder


class Judge(ThreadingHTTPServer):
    """Scores a text by its length; hangs up while `down`, and on the first `fails`; answers so many at a time."""

    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.url, self.waits_for = f"http://127.0.0.1:{self.server_port}/", threading.Barrier(1)
        self.asked, self.fails, self.down, self.dies_after, self.lock = 0, 0, False, 10**9, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_): ...  # a client that is hung up on is no news


class Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        judge, text = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
        with judge.lock:
            judge.asked += 1
            judge.down |= judge.asked > judge.dies_after
        judge.waits_for.wait()
        if judge.down or judge.asked <= judge.fails:
            return self.connection.close()
        body = json.dumps({"score": len(text) / 100}).encode()
        self.send_response(500 if text == "refused" else 200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_): ...  # the tests' output is theirs


@pytest.fixture
def judge(monkeypatch):
    """The server; `judge_reward` of examples/ stands in rewards.py as if the user had pasted it there."""
    scope = {"__name__": "rewards"}
    exec((ROOT / "examples/judge_reward.py").read_text(encoding="utf-8"), scope)
    monkeypatch.setattr(rewards, "judge_reward", scope["judge_reward"], raising=False)
    monkeypatch.setitem(scope, "asyncio", SimpleNamespace(gather=asyncio.gather, sleep=lambda _: asyncio.sleep(0.01)))
    server = Judge()
    yield server
    server.shutdown()
    server.server_close()


def asked_about(judge, texts: list[str], seconds: float = 5) -> list[float | None]:
    entries = {"judge_reward": {"weight": 1, "server": judge.url, "seconds": seconds}}
    (reward,) = load_rewards(entries, [], UserError)
    return reward.score(["?"] * len(texts), texts, {})


def test_64_are_asked_about_at_once_and_one_is_left_out_that_is_refused_and_asked_again_that_is_dropped(judge):
    judge.waits_for = threading.Barrier(64)
    assert asked_about(judge, ["ab"] * 64) == [0.02] * 64
    judge.waits_for = threading.Barrier(1)
    assert asked_about(judge, ["abc", "refused"]) == [0.03, None]
    judge.asked, judge.fails = 0, 3
    assert asked_about(judge, ["abc"]) == [0.03] and judge.asked == 4


def test_a_judge_that_is_gone_or_too_slow_ends_with_what_to_do(judge):
    judge.down = True
    with pytest.raises(RewardError, match="judge_reward: raised .*--resume"):
        asked_about(judge, ["abc"])
    assert judge.asked == 4
    judge.down, judge.waits_for = False, threading.Barrier(64)
    with pytest.raises(RewardError, match="raised ReadTimeout"):
        asked_about(judge, ["abc"], seconds=0.2)
    assert judge.asked == 8


def test_a_run_whose_judge_goes_is_resumed_exactly_from_its_newest_checkpoint(judge, tiny, tmp_path):
    arguments = [*tiny, "--training.max_steps", "6", "--training.save_steps", "2", "--training.num_iterations", "2"]
    arguments += ["--rewards.judge_reward.weight", "1", "--rewards.judge_reward.server", judge.url]
    judge.dies_after = 2 + (3 + 64) + 16 + 8  # the check, the samples, one generation batch, half of the second
    with pytest.raises(RunError, match="judge_reward: raised .*--resume"):
        train_grpo.main(arguments)
    assert RunFolder(tmp_path / "run").newest_complete().name == "checkpoint-4"
    judge.dies_after, judge.down = 10**9, False
    train_grpo.main([*arguments, "--resume"])
    train_grpo.main([*arguments, "--training.output_dir", str(tmp_path / "whole")])
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
