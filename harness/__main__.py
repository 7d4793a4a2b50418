"""Tools that are run beside a training run, or after it:

python -m harness chat outputs/a                  # the base model's answers and the trained one's, with their scores
python -m harness compare outputs/a outputs/b     # what runs reached, and how they differ
python -m harness read outputs/a                  # completions as they were sampled
python -m harness merge outputs/lora              # a LoRA run as a model of its own
python -m harness launch --num_processes 8 train_grpo.py     # a run in several processes
python -m harness score TEXT                      # what each reward gives to a text; as `python rewards.py` does
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from harness.end import exit_status, go_offline_without_network
from harness.errors import UserError

TOOLS = ("chat", "compare", "read", "merge", "launch", "score")


def start(name: str = "", *arguments: str) -> None:
    """Run a tool, and exit as it ends."""
    sys.exit(exit_status(lambda: main(name, arguments), "nothing was written"))


def main(name: str, arguments: Sequence[str]) -> None:
    if name in ("-h", "--help", ""):
        return print(__doc__.strip())
    if name not in TOOLS:
        raise UserError(f"{name}: no such tool; there are {', '.join(TOOLS)}")
    sys.argv[0] = f"python -m harness {name}"  # for its usage
    import_module(f"harness.tools.{name}").main(arguments)


if __name__ == "__main__":
    go_offline_without_network()
    start(*sys.argv[1:])
