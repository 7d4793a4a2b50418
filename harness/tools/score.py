"""Score: each reward of a text, which is what `python rewards.py` does."""

import sys

from harness.errors import RewardError
from harness.reward import Reward, columns, public_functions, reward_functions, why_no_reward


def main() -> None:
    """Score the text of the command line, or each line of stdin, with every reward that needs nothing but the text."""
    texts = [" ".join(sys.argv[1:])] if sys.argv[1:] else sys.stdin.read().splitlines()
    for name in public_functions():
        if problem := why_no_reward(name):
            print(f"note: {name}: {problem}", file=sys.stderr)
    rewards = [Reward(name, 1, {}, function) for name, function in reward_functions().items() if not columns(function)]
    print("\t".join([*(reward.name for reward in rewards), "characters", "text"]))
    for text in texts:
        try:  # as chat messages, which is how training passes them
            scores = [reward.score([""], [[{"role": "assistant", "content": text}]], {})[0] for reward in rewards]
        except RewardError as error:
            sys.exit(f"error: {error}")
        print("\t".join([*("None" if s is None else f"{s:.4g}" for s in scores), str(len(text)), text]))
