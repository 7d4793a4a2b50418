"""Did a run of the demo learn to guess? Of its held-out questions, asked before and after: how many answers contain the
right one (whatever answer_reward was set to), its F1, and how many different answers of the data set stand in a text.

    python benchmarks/guesses.py outputs/demo outputs/demo-f1
"""

import json
import sys
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from rewards import _normalised, answer_reward, emoji_reward, length_reward  # noqa: E402


def main() -> None:
    questions = [json.loads(line) for line in (ROOT / "demo/questions.jsonl").open(encoding="utf-8")]
    answers = {row["query"]: row["answer"] for row in questions}
    known = {_normalised(answer) for answer in answers.values()}
    for folder in sys.argv[1:]:
        lines = Path(folder, "samples.jsonl").read_text(encoding="utf-8").splitlines()
        samples = [json.loads(line) for line in lines]
        samples = [sample for sample in samples if sample["held_out"]]
        right = [answers[sample["question"]] for sample in samples]
        for when in ("before", "after"):
            texts = [sample[when]["completion"] for sample in samples]
            contained = mean(answer_reward(texts, answer=right))
            f1 = mean(answer_reward(texts, answer=right, f1=True))
            guesses = mean(guessed(_normalised(text), known) for text in texts)
            others = f"emoji {mean(emoji_reward(texts)):.2f}, length {mean(length_reward(texts)):.2f}"
            print(f"{folder} {when}: {others}, right {contained:.2f}, F1 {f1:.2f}, {guesses:.2f} answers per text")


def guessed(text: str, known: set[str]) -> int:
    """How many of the known answers stand in it; one within another is none of its own."""
    found = {answer for answer in known if answer in text}
    return sum(not any(answer != other and answer in other for other in found) for answer in found)


if __name__ == "__main__":
    main()
