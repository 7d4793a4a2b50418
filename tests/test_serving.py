"""docs/serving.md's commands for `transformers serve`, run as written but for port and folder; and the judge there."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from conftest import ROOT

from harness.rewards_file import rewards_py, use


def test_transformers_serve_answers(policy):
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8").replace("outputs/demo", policy)
    serve = re.search(r"^    \.venv/bin/(transformers serve .*)$", text, re.MULTILINE)[1]
    body = re.search(r"-d '(.*)'", text)[1]
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    program, words = Path(sys.executable).with_name("transformers"), serve.replace("8000", str(port)).split()[1:]
    request = urllib.request.Request(f"http://localhost:{port}/v1/chat/completions", body.encode())
    request.add_header("Content-Type", "application/json")
    server = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for attempt in range(60):
            try:
                answer = json.load(urllib.request.urlopen(request, timeout=60))
                break
            except OSError:  # not up yet
                assert server.poll() is None and attempt < 59
                time.sleep(1)
        assert answer["choices"][0]["message"]["content"].strip()
        use(ROOT / "examples/judge_reward.py")
        asked = {"server": f"http://localhost:{port}", "model": policy}
        (grade,) = asyncio.run(rewards_py().judge_reward(["富士山の高さは?"], ["3776m"], ["3776m"], **asked))
        assert grade is None or 0 <= grade <= 1  # a small model's words
    finally:
        server.terminate()
        server.wait()
