"""docs/serving.md's commands for `transformers serve`, run as written but for port and folder."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from conftest import ROOT


def test_transformers_serve_answers(policy):
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    serve = re.search(r"^    \.venv/bin/(transformers serve .*)$", text, re.MULTILINE)[1]
    body = re.search(r"-d '(.*)'", text)[1].replace("outputs/demo", policy)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = serve.replace("outputs/demo", policy).replace("8000", str(port)).split()
    words[0] = str(Path(sys.executable).with_name("transformers"))
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://localhost:{port}/v1/chat/completions", body.encode(), kind)
    try:
        for attempt in range(60):
            try:
                answer = json.load(urllib.request.urlopen(request, timeout=60))
                break
            except OSError:  # not up yet
                assert server.poll() is None and attempt < 59
                time.sleep(1)
        assert answer["choices"][0]["message"]["content"].strip()
    finally:
        server.terminate()
        server.wait()
