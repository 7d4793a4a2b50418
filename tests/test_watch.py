"""What is warned of while a run goes on; the warnings of real runs are in test_verdict.py and test_reward.py."""

import math
from types import SimpleNamespace

import numpy as np
import torch

from harness.during.watch import APART, Watch
from harness.reward import Reward


def watching(questions: int = 40, **weights: float) -> Watch:
    """A Watch over a run in which each step, and so each log, has so many questions."""
    rewards = [Reward(name, weight, {}, None) for name, weight in weights.items()]
    args = SimpleNamespace(num_generations=8, num_iterations=1)
    plan = SimpleNamespace(rewards=rewards, args=args, questions_a_step=questions, prompts_a_batch=questions)
    return Watch(plan, torch.nn.Linear(1, 1))


def warnings(logs: list[dict], questions: int = 40, resumed: int = 0) -> dict[str, int]:
    """The number of the log at which each warning came, by its cause.

    resumed: of how many logs a resumed run finds the history.
    """
    watch, came = watching(questions, emoji=1, length=1, answer=0), {}
    history = [log | {"step": i} for i, log in enumerate(logs[:resumed], start=1)]
    kept = {"Watch": watch.state()}
    watch.on_train_begin(None, SimpleNamespace(log_history=history, stateful_callbacks=kept), None)
    for i, log in enumerate(logs[resumed:], start=resumed + 1):
        watch.on_log(None, SimpleNamespace(global_step=i, is_world_process_zero=False), None, logs=log)
        came |= {cause: came.get(cause, i) for cause in watch.warnings}
    return came


BEGAN = {"reward": 4.0}
for name in ("emoji", "length", "answer"):
    BEGAN |= {f"rewards/{name}/mean": 0.8, f"rewards/{name}/std": 0.4}
ANSWER = {"rewards/answer/mean": 0.5}
HAND_MADE = [  # questions a log, [(change, for how many logs)], {cause: at which log}
    (40, [({}, 1), (ANSWER, 1), (ANSWER | {"rewards/answer/mean": 0.2}, 2)], {"rewards/answer": 4}),
    (40, [({}, 8), (ANSWER, 9)], {"rewards/answer": 14}),  # a smaller fall takes more questions
    (40, [({}, 8), (ANSWER | {"rewards/answer/applies": 0.02}, 20)], {}),  # 16 questions
    (2, [({}, 3), (ANSWER | {"rewards/answer/mean": 0.0}, 7)], {}),  # 14 questions
    (40, [({}, 4), ({"rewards/emoji/mean": 0.0}, 20)], {}),  # no canary: what is trained on is in the verdict
    (40, [({APART: 0.015}, 2), ({APART: 0.2}, 2), ({APART: 0.02}, 1), ({APART: 0.2}, 3)], {"sampler": 8}),
    (40, [({APART: 0.03}, 2), ({APART: 0.2}, 9)], {}),  # less than ten times
    (40, [({APART: 0.001}, 2), ({APART: 0.09}, 9)], {}),
]


def test_what_looks_wrong_in_the_logs():
    for questions, parts, expected in HAND_MADE:
        logs = [BEGAN | change for change, times in parts for _ in range(times)]
        assert warnings(logs, questions) == expected, (questions, parts)
    logs = [BEGAN] * 4 + [BEGAN | ANSWER | {"rewards/answer/mean": 0.2}] * 4
    assert warnings(logs) == warnings(logs, resumed=4) == {"rewards/answer": 6}  # it compares with where it began


def simulated(rng: np.random.Generator, questions: int, logs: int, answer: float) -> list[dict]:
    """Logs of questions of which the policy knows each or not; 8 completions each.

    answer: the share of questions that it knows from half-way on; at first 0.8.
    """
    made = []
    for i in range(logs):
        knows = rng.random((questions, 1)) < 0.8 + (answer - 0.8) * min(1, 2 * i / logs)
        right = rng.random((questions, 8)) < np.where(knows, 0.95, 0.05)
        made.append(BEGAN | {"rewards/answer/mean": right.mean(), "rewards/answer/std": right.std()})
    return made


SIMULATED = [  # questions a log, logs, the share it knows half-way, how many of 20 are warned by then
    (2, 150, 0.8, 0),
    (40, 30, 0.8, 0),
    (2, 150, 0.85, 0),
    (2, 150, 0.0, 20),
    (40, 30, 0.0, 20),
]


def test_noise_is_not_accused_and_a_canary_given_up_is():
    for row in SIMULATED:
        *how, expected = row
        came = [warnings(simulated(np.random.default_rng(seed), *how), how[0]) for seed in range(20)]
        in_time = sum(causes.get("rewards/answer", math.inf) <= how[1] / 2 for causes in came)
        assert in_time == expected and (expected or not any(came)), (row, came)


def test_the_metric_of_best_yaml():
    watch, found = watching(emoji=1, answer=0), []
    for reward, canary in ((1, 0.8), (3, 0.76), (7, 0.61), (9, 0.5), (9, 0.4), (9, None)):  # None: it applied to no row
        logs = {"eval_reward": reward, "eval_rewards/answer/mean": canary, "eval_rewards/emoji/mean": 0.0}
        watch.on_evaluate(None, None, None, metrics=logs)
        found.append(logs["eval_reward_while_canaries_hold"])
    assert found[:3] == [1, 3, 7] and found[5] == 9
    assert found[4] < found[3] < -1e6  # of those that do not hold, the one that fell least is the best
