"""Does number_reward judge GSM8K as its authors did: every answer of theirs, and every solution that they marked?

git clone https://github.com/openai/grade-school-math
python benchmarks/gsm8k.py grade-school-math
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from maths_rewards import number_reward


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    data = Path(sys.argv[1]) / "grade_school_math/data"
    answers = [row["answer"] for name in ("train", "test") for row in rows(data / f"{name}.jsonl")]
    # A completion with the right number alone, and the right number plus one.
    numbers = [int(answer.rpartition("#### ")[2].replace(",", "")) for answer in answers]
    right, wrong = (number_reward([str(n + off) for n in numbers], answer=answers) for off in (0, 1))
    print(f"{len(answers):,} answers: {sum(right):,.0f} score 1 with their own number, {sum(wrong):,.0f} with one more")

    marked = [
        (solution["solution"], row["ground_truth"], solution["is_correct"])
        for row in rows(data / "example_model_solutions.jsonl")
        for solution in row.values()
        if isinstance(solution, dict)
    ]
    texts, truths, marks = zip(*marked, strict=True)
    same = sum(score == mark for score, mark in zip(number_reward(texts, answer=truths), marks, strict=True))
    print(f"{len(marked):,} solutions of their models, {sum(marks):,} right: {same:,} judged as they were marked")
