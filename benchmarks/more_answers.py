"""A run's held-out questions, each answered several times by the base and by the trained model: narrower intervals.

    python benchmarks/more_answers.py outputs/maths --answers 4

The verdict rests on one answer to each question, which is cheap. Here the answers to a question are averaged first, so
that the interval is over questions, as the verdict's is.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, TrainerState

sys.path.insert(0, str(Path(__file__).parent.parent))
from harness.after.samples import complete, score  # noqa: E402
from harness.after.verdict import interval  # noqa: E402
from harness.before.data import load_data  # noqa: E402
from harness.before.policy import load_model  # noqa: E402
from harness.run_folder import RunFolder  # noqa: E402
from harness.settings import read_settings  # noqa: E402
from harness.tools.chat import eos_token_ids, its_rewards, sampling_arguments  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the output_dir of a run of all weights")
    parser.add_argument("--answers", type=int, default=4, help="to each question, of each model")
    options = parser.parse_args()
    files = ["--config", str(options.folder / "config.yaml"), "--rewards_file", str(options.folder / "rewards.py")]
    settings = read_settings(files)
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    rewards = its_rewards(RunFolder(options.folder), settings.rewards)
    rows = list(load_data(settings, tokenizer).held_out)
    models = [load_model(settings.model), load_model(settings.model, options.folder)]
    sampling, found = sampling_arguments(settings.training), []
    for n in range(options.answers):
        sampling.seed = 1_000 * (n + 1)  # not the run's own, whose answers its report has
        for model in models:
            eos = eos_token_ids(model, tokenizer)
            texts, ids = complete(model, tokenizer, [row["prompt"] for row in rows], sampling, eos)
            found.append(score(rewards, rows, texts, ids, TrainerState()))
    for reward in rewards:  # (answers, models, questions), and the mean over the answers
        sides = np.array([[row[reward.logged] for row in each] for each in found], dtype=float)
        before, after = sides.reshape(options.answers, 2, len(rows)).mean(axis=0)
        print(f"{reward.name}: {before.mean():.2f} -> {after.mean():.2f}, {interval(after - before)}", flush=True)
