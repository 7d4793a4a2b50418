"""Did the demo learn? The averages of the last 20 steps, and a model that from_pretrained opens."""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

GOALS = {"emoji_reward": 3.8, "length_reward": 0.5, "answer_reward": 0.9}

folder = Path(sys.argv[1])
history = [log for log in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "reward" in log]
last = [log for log in history if log["step"] > history[-1]["step"] - 20]
for name, goal in GOALS.items():
    mean = sum(log[f"rewards/{name}/mean"] for log in last) / len(last)
    print(f"{name}: {mean:.3f} (goal {goal})")
    if mean < goal:
        sys.exit(f"{folder}: {name} did not reach {goal}")
if "**learned in this run: emoji +" not in (folder / "README.md").read_text(encoding="utf-8"):
    sys.exit(f"{folder}: the card's verdict is not that emoji were learned")
AutoModelForCausalLM.from_pretrained(folder)
AutoTokenizer.from_pretrained(folder)
for name in ("reward_curves.png", "README.md", "samples.jsonl", "config.yaml"):
    if not (folder / name).stat().st_size:
        sys.exit(f"{folder / name} is empty")
