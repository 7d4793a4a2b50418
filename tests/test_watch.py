"""What is warned of while a run goes on; the warnings of real runs are in test_verdict.py and test_reward.py."""

import torch

from harness.during.watch import Watch
from harness.reward import Reward


def watching(**weights: float) -> Watch:
    return Watch([Reward(name, weight, {}, None) for name, weight in weights.items()], torch.nn.Linear(1, 1))


BEGAN = {"reward": 4.0, "kl": 0.0, "entropy": 1.0, "completions/clipped_ratio": 0.0, "frac_reward_zero_std": 0.0}
BEGAN |= {"rewards/emoji/mean": 1.0}
LOGS = [
    ({"completions/clipped_ratio": 0.6}, 1, "60% of completions are cut off"),
    ({"reward": 3.5}, 5, "the total reward, 3.50, has fallen below where it began, 4.00"),
    ({"reward": 3.7}, 5, None),
    ({"reward": 3.5}, 4, None),
    ({"entropy": 0.09}, 1, "entropy fell from 1.00 to 0.09 nats a token"),
    ({"kl": 1.1}, 5, "KL is 1.1 a token: the policy runs away"),
    ({"kl": 1.1}, 4, None),
    ({"kl": 11.0}, 1, "KL is 11.0 a token"),
]


def test_what_looks_wrong_in_a_log():
    wrong = []
    for change, times, words in LOGS:
        watch = watching(emoji=1)
        seen = [watch._looks_wrong(logs) for logs in [BEGAN, *[BEGAN | change] * times]]
        found = [message for messages in seen for _, message in messages]
        if [words in message for message in found] != [True] if words else found:
            wrong.append((change, times, found))
    assert wrong == []


def test_the_metric_of_best_yaml():
    watch = watching(emoji=1, answer=0)
    found = []
    for reward, canary in ((1, 0.8), (3, 0.76), (9, 0.7), (9, 0.6)):
        logs = {"eval_reward": reward, "eval_rewards/answer/mean": canary, "eval_rewards/emoji/mean": 0.0}
        watch.on_evaluate(None, None, None, metrics=logs)
        found.append(logs["eval_reward_while_canaries_hold"])
    watch.on_evaluate(None, None, None, metrics={"eval_reward": 1, "eval_rewards/answer/mean": None})  # TRL's: no row
    assert found[:2] == [1, 3] and found[3] < found[2] < -1e6  # of those that do not hold, the one that fell least
