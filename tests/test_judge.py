"""examples/judge_reward.py, pasted into rewards.py, asks a real local HTTP server: it delays, fails and recovers."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from conftest import REWARDS, ROOT, weights

import train_grpo
from harness.errors import RewardError, RunError, UserError
from harness.reward import load_rewards
from harness.rewards_file import rewards_py, use
from harness.run_folder import RunFolder

NONE = 10**9  # more than it is asked


class Judge(ThreadingHTTPServer):
    """Grades by the length of what it is asked. The first `fails` it answers by `status`; it hangs up where that is 0,
    and on those behind `dies_after`."""

    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.url, self.waits_for = f"http://127.0.0.1:{self.server_port}", threading.Barrier(1)
        self.asked, self.fails, self.status, self.dies_after = 0, 0, 503, NONE
        self.at_once, self.most, self.lock = 0, 0, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def end(self):
        self.shutdown()
        self.server_close()
        return self

    def handle_error(self, *_): ...  # a client that is hung up on is no news


class Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        judge, question = self.server, asked["messages"][0]["content"]
        with judge.lock:
            judge.asked += 1
            judge.at_once += 1
            judge.most = max(judge.most, judge.at_once)
        judge.waits_for.wait()
        threading.Event().wait(0.05)  # in which more than it allows would come
        with judge.lock:
            judge.at_once -= 1
        status = judge.status if judge.asked <= judge.fails else 200
        if not status or judge.asked > judge.dies_after:
            return self.connection.close()
        told = "no idea" if "none" in question else f"Grade: {len(question) % 11}"
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": told}}]}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_): ...  # the tests' output is theirs


@pytest.fixture
def judge(tmp_path, monkeypatch):
    example = (ROOT / "examples/judge_reward.py").read_text(encoding="utf-8")
    (tmp_path / "rewards.py").write_text(REWARDS.read_text(encoding="utf-8") + example, encoding="utf-8")
    use(tmp_path / "rewards.py")
    at_once = SimpleNamespace(**vars(asyncio) | {"sleep": lambda _: asyncio.sleep(0.01)})
    monkeypatch.setattr(rewards_py(), "asyncio", at_once)
    server = Judge()
    yield server
    server.end()


def graded(url, texts: list[str], **settings) -> list[float | None]:
    (reward,) = load_rewards({"judge_reward": {"weight": 1, "server": url, **settings}}, ["answer"], UserError)
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    return reward.score(["?"] * len(texts), completions, {"answer": ["right"] * len(texts)})


def test_64_are_asked_about_16_at_once_and_asked_again_where_the_server_fails(judge):
    judge.waits_for = threading.Barrier(16)
    whole = graded(judge.url, ["ab"] * 64)
    assert len(set(whole)) == 1 and 0 <= whole[0] <= 1 and (judge.asked, judge.most) == (64, 16)
    judge.waits_for = threading.Barrier(1)
    assert graded(judge.url, ["ab", "abc", "none"]) == [whole[0], (whole[0] + 0.1) % 1.1, None]
    for judge.status in (503, 429, 0):
        judge.asked, judge.fails = 0, 3
        assert graded(judge.url, ["ab"]) == whole[:1] and judge.asked == 4


def test_a_judge_that_is_gone_too_slow_or_refuses_ends_with_its_address_and_what_to_do(judge):
    gone = Judge().end()
    judge.fails, judge.status = 99, 404
    for url, words in ((gone.url, "nothing answers.*start the judge"), (judge.url, "404")):
        with pytest.raises(RewardError, match=rf"rewards.py:\d+: .*RuntimeError: {url}: {words}"):
            graded(url, ["ab"])
    judge.fails, judge.asked, judge.waits_for = 0, 0, threading.Barrier(64)
    with pytest.raises(RewardError, match=f"{judge.url}: ReadTimeout"):
        graded(judge.url, ["ab"], seconds=0.2)
    assert judge.asked == 4


def test_a_run_whose_judge_goes_is_resumed_exactly_from_its_newest_checkpoint(judge, tiny, tmp_path):
    arguments = [*tiny, "--rewards_file", str(tmp_path / "rewards.py"), "--rewards.judge_reward.weight", "1"]
    arguments += ["--training.max_steps", "6", "--training.save_steps", "2", "--training.num_iterations", "2"]
    arguments += ["--rewards.judge_reward.server", judge.url]
    judge.dies_after = 2 + 64 + 16 + 8  # the check, the samples, one generation batch, half of the second
    with pytest.raises(RunError, match=f"judge_reward: raised .*{judge.url}.*--resume"):
        train_grpo.main(arguments)
    assert RunFolder(tmp_path / "run").newest_complete().name == "checkpoint-4"
    judge.dies_after = NONE
    train_grpo.main([*arguments, "--resume"])
    arguments += ["--training.output_dir", str(tmp_path / "whole")]
    judge.asked, judge.dies_after = 0, 2 + 64 + 2 * 16  # it goes in the last asking, which alone is to be done again
    with pytest.raises(RunError, match=f"{judge.url}.*--resume asks them"):
        train_grpo.main(arguments)
    whole = weights(tmp_path / "whole")
    judge.dies_after = NONE
    train_grpo.main([*arguments, "--resume"])
    assert weights(tmp_path / "run") == whole == weights(tmp_path / "whole")
    assert all(sample["after"] for sample in RunFolder(tmp_path / "whole").samples())
