"""The score of each reward, on texts that you type: try rewards.py before a run.

python rewards.py "富士山は3776mです🗻✨" "3776m"      # one row per text, each an answer to an empty prompt
python rewards.py < answers.txt                       # one row per line
python rewards.py --config mine.yaml "はい"           # with the settings of that file, as train_grpo.py reads it
python rewards.py --rewards_file mine.py "はい"       # the rewards of another file; without --config with its defaults
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from harness.errors import RewardError
from harness.reward import Reward
from harness.rewards_file import DEFAULT, FROM_TRL, columns, own_callables, reward_functions, reward_named, use, why_not
from harness.settings import reward_settings

GIVEN = FROM_TRL - {"completion_ids"}
# What a reward may read of a TrainerState, whose import takes seconds, before the first of many steps.
STATE = SimpleNamespace(global_step=0, max_steps=1000, num_train_epochs=1, logging_steps=1, log_history=[])


def main(arguments: Sequence[str]) -> None:
    """Score the texts of the command line, or each line of stdin, with every reward that needs nothing but the text."""
    parser = argparse.ArgumentParser(
        prog="rewards.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="one that begins with - comes after --")
    parser.add_argument("--config", action="append", default=[], type=Path, metavar="FILE", help="over config.yaml")
    parser.add_argument("--rewards_file", type=Path, default=DEFAULT, metavar="FILE", help="in place of rewards.py")
    options = parser.parse_args(arguments)
    use(options.rewards_file)
    if not options.texts and sys.stdin.isatty():
        return parser.print_help()
    texts = options.texts or sys.stdin.buffer.read().decode(errors="backslashreplace").splitlines()
    table = {}
    failed = False
    entries = {}  # of another file alone, to which config.yaml's need not belong
    if options.config or options.rewards_file.resolve() == DEFAULT:
        entries = reward_settings(options.config)
    for reward in _rewards(entries):
        try:
            table[reward.name] = [_cell(reward, text) for text in texts]
        except RewardError as error:  # which costs the others nothing
            print(error.in_words(), file=sys.stderr)
            failed = True
    table["characters"] = [str(len(text)) for text in texts]
    table["text"] = [text.replace("\t", "⇥").replace("\n", "⏎") for text in texts]  # a row stays a row
    print("\t".join(table))
    for row in zip(*table.values(), strict=True):
        print("\t".join(row))
    sys.exit(failed)


def _cell(reward: Reward, text: str) -> str:
    completion = [{"role": "assistant", "content": text}]  # which is how training passes it
    (value,) = reward.score([""], [completion], {}, STATE)
    return "None" if value is None else f"{value:.4g}"


def _rewards(entries: dict) -> list[Reward]:
    """Those that a text alone can be scored by, with their settings; of the others is said what they need."""
    for name, value in own_callables().items():
        problem = why_not(value)
        if problem:
            _note(f"{name}: {problem}")
    rewards = []
    for name, entry in (dict.fromkeys(reward_functions(), {}) | entries).items():
        if entry is None:  # null in the settings
            continue
        settings = {key: value for key, value in entry.items() if key != "weight"}
        reward = Reward(name, 1, settings, reward_named(name))
        if reward.function is None:
            _note(f"{name}: is a reward model; not scored here")
            continue
        needs = [each for each in columns(reward.function, GIVEN) if each not in settings]
        if needs:
            _note(f"{name}: needs {', '.join(needs)}; not scored here")
        else:
            rewards.append(reward)
    return rewards


def _note(words: str) -> None:
    print(f"note: {words}", file=sys.stderr)
