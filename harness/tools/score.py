"""The score of each reward, on texts that you type: try rewards.py before a run.

python rewards.py "富士山は3776mです🗻✨" "3776m"      # one row a text
python rewards.py < answers.txt                       # one row a line
python rewards.py --config mine.yaml "はい"           # with the settings of that file, as train_grpo.py reads it
"""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from harness.errors import RewardError, UserError
from harness.reward import Reward
from harness.rewards_file import parameters, reward_functions, reward_named, rewards_py
from harness.settings import reward_settings


def main() -> None:
    """Score the texts of the command line, or each line of stdin, with every reward that needs nothing but the text."""
    parser = argparse.ArgumentParser(
        prog="rewards.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="each is scored on its own; none: the lines of stdin")
    parser.add_argument("--config", action="append", default=[], type=Path, metavar="FILE", help="over config.yaml")
    parser.error = lambda problem: _end(f"{problem}; a text that begins with - comes behind --; see --help")
    options = parser.parse_args()
    if not options.texts and sys.stdin.isatty():
        return parser.print_help()
    try:
        _score(options.texts or sys.stdin.read().splitlines(), _rewards(options.config))
    except (UserError, RewardError) as error:
        _end(str(error))


def _rewards(files: list[Path]) -> list[Reward]:
    """Those of rewards.py that a text alone can be scored by, with their settings; what the others lack is said."""
    rewards_py()
    try:
        entries = reward_settings(files)
    except UserError as error:
        if files:
            raise
        _note(f"{error}; every reward is scored with its own defaults")
        entries = {}
    rewards = []
    for name in dict.fromkeys([*reward_functions(), *entries]):
        settings = {key: value for key, value in entries.get(name, {}).items() if key != "weight"}
        reward = Reward(name, 1, settings, reward_named(name))
        if reward.function is None:
            _note(f"{name}: is a reward model, which only a run loads; not scored here")
        elif reward.columns:
            _note(f"{name}: needs the column {', '.join(reward.columns)} of the data; not scored here")
        elif "completion_ids" in (needed := _without_default(reward)):
            _note(f"{name}: needs completion_ids, the tokens that a run samples; not scored here")
        else:
            if "prompts" in needed:
                _note(f"{name}: the prompt is empty here")
            rewards.append(reward)
    return rewards


def _without_default(reward: Reward) -> list[str]:
    return [name for name, each in parameters(reward.function).items() if each.default is each.empty]


def _score(texts: list[str], rewards: list[Reward]) -> None:
    print("\t".join([*(reward.name for reward in rewards), "characters", "text"]))
    for text in texts:  # as chat messages, which is how training passes them
        scores = [reward.score([""], [[{"role": "assistant", "content": text}]], {})[0] for reward in rewards]
        shown = text.replace("\t", "⇥").replace("\n", "⏎")  # a row stays a row
        print("\t".join([*("None" if s is None else f"{s:.4g}" for s in scores), str(len(text)), shown]))


def _note(words: str) -> None:
    print(f"note: {words}", file=sys.stderr)


def _end(problem: str) -> NoReturn:
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)
