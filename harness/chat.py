"""Ask the base model and the trained one the same questions, and see both answers with every reward's score.

python -m harness.chat outputs/a                      # type questions; an empty line or Ctrl-D ends it
python -m harness.chat outputs/a < questions.txt      # one a line
"""

import argparse
import readline  # noqa: F401  so that input() can be edited
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.exits import RunError, exit_status, go_offline_without_network


def questions() -> Iterator[str]:
    """What is typed, up to an empty line or Ctrl-D; or each line of stdin that is not empty."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    with suppress(EOFError):
        while question := input("question: ").strip():
            yield question


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the output_dir of a run")
    folder = parser.parse_args(arguments).folder
    from harness.settings import run_settings

    settings = run_settings(folder)

    # These imports take seconds; a wrong folder has been reported before them.
    from transformers import AutoTokenizer, TrainerState

    from harness.card import score_words
    from harness.finished_run import eos_token_ids, load_model, load_rewards, quiet, sampling_arguments
    from harness.loading import as_messages
    from harness.rewarding import RewardError
    from harness.samples import complete, scores

    with quiet():
        tokenizer, trained = AutoTokenizer.from_pretrained(folder), load_model(settings, folder)
        # Of a LoRA run one model is both: its adapter is switched off and on.
        base = trained if hasattr(trained, "disable_adapter") else load_model(settings)
        rewards = load_rewards(settings)
    sampling = {"tokenizer": tokenizer, "arguments": sampling_arguments(settings)}
    sampling["eos_token_ids"] = eos_token_ids(base, tokenizer)
    state, console = TrainerState.load_from_json(folder / "trainer_state.json"), Console(highlight=False, markup=False)
    for question in questions():
        row = {"prompt": as_messages(question, settings.prompts.system)}
        with base.disable_adapter() if base is trained else nullcontext():
            texts = complete(base, prompts=[row["prompt"]], **sampling)
        texts += complete(trained, prompts=[row["prompt"]], **sampling)
        try:
            found = scores(rewards, [row] * 2, texts, state)
        except RewardError as error:
            raise RunError(str(error)) from error
        table = Table(title=question)
        for side in ("base", "trained"):
            table.add_column(side, overflow="fold")
        table.add_row(*(f"{text}\n\n{score_words(row)}" for text, row in zip(texts, found, strict=True)))
        console.print(table)


if __name__ == "__main__":
    go_offline_without_network()
    sys.exit(exit_status(main, "the run is as it was"))
