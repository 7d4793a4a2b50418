"""Questions whose answer is a number, in a file of GSM8K's shape, for recipes/maths.yaml; the same seed, the same file.

    python -m venv /tmp/gym && /tmp/gym/bin/pip install reasoning-gym==0.1.25
    /tmp/gym/bin/python examples/maths_data.py maths.jsonl --seed 42

reasoning-gym (Apache-2.0) is needed here only, not by a run.
"""

import argparse
import json
import sys

try:
    import reasoning_gym
except ImportError:
    sys.exit("needs reasoning-gym: pip install reasoning-gym==0.1.25 (in a Python of its own: see this file's top)")

# Easy, so that a 135M model is right now and then (benchmarks/README.md): where all completions of a
# group are right, or all wrong, there is nothing to learn. reasoning_gym.factory.DATASETS has a hundred other kinds.
KINDS = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "gcd": {"min_value": 1, "max_value": 20},
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="to write, one row per line")
    parser.add_argument("--rows", type=int, default=500, help="of each kind; the same question only once")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    answers = {}
    for kind, settings in KINDS.items():
        made = reasoning_gym.create_dataset(kind, size=options.rows, seed=options.seed, **settings)
        answers |= {row["question"]: row["answer"] for row in made}
    with open(options.file, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"question": q, "answer": a}) + "\n" for q, a in answers.items())
