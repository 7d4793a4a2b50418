"""Ask the base model and the trained one the same questions, and see both answers with every reward's score.

python -m harness chat outputs/a                      # type questions; an empty line or Ctrl-D ends it
python -m harness chat outputs/a < questions.txt      # one a line
"""

import argparse
import readline  # noqa: F401  so that input() can be edited
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.errors import UserError, one_line
from harness.reward import Reward, load_rewards
from harness.rewards_file import parameters, why_no_reward
from harness.run_folder import RunFolder


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
    folder = RunFolder(parser.parse_args(arguments).folder)
    settings = folder.trained()

    # These imports take seconds; a wrong folder has been reported before them.
    from jinja2 import TemplateError
    from transformers import AutoTokenizer, TrainerState

    from harness.after.samples import complete, score
    from harness.before.data import prompt_text
    from harness.before.messages import as_messages
    from harness.processes import quiet
    from harness.reward import score_words
    from harness.tools.trained import load_model

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder.path)
        trained = load_model(settings["model"], folder.path)
        # Of a LoRA run one model is both: its adapter is switched off and on.
        base = trained if hasattr(trained, "disable_adapter") else load_model(settings["model"])
        rewards = todays_rewards(settings["rewards"])
    sampling = {"tokenizer": tokenizer, "arguments": sampling_arguments(settings["training"])}
    sampling["eos_token_ids"] = eos_token_ids(base, tokenizer)
    state, console = TrainerState.load_from_json(folder.state_file), Console(highlight=False, markup=False)
    for question in questions():
        try:
            row = {"prompt": as_messages(question, settings["prompts"].get("system"))}
            prompt_text(row["prompt"], tokenizer, sampling["arguments"].chat_template_kwargs or {})
        except (TemplateError, ValueError) as error:
            problem = f"the template of {folder} does not take it: {one_line(error)}"
            raise UserError(f"{question[:40]!r}: {problem}; ask something else") from error
        with base.disable_adapter() if base is trained else nullcontext():
            answers = [complete(base, prompts=[row["prompt"]], **sampling)]
        answers.append(complete(trained, prompts=[row["prompt"]], **sampling))
        texts, ids = ([one for (one,) in each] for each in zip(*answers, strict=True))
        found = score(rewards, [row] * 2, texts, ids, state) or [{}, {}]
        table = Table(title=question)
        for side in ("base", "trained"):
            table.add_column(side, overflow="fold")
        table.add_row(*(f"{text}\n\n{score_words(row)}" for text, row in zip(texts, found, strict=True)))
        console.print(table)


def todays_rewards(entries: dict[str, dict[str, Any]]) -> list[Reward]:
    """The run's rewards, loaded, also those that the run left out as its data lack a column.

    They are functions of today's rewards.py; where that is broken, or has not the run's rewards with their settings,
    there are none, and a line that says so.
    """
    from harness.before.policy import load_reward_models
    from harness.tools.trained import DEVICE

    try:
        for name in entries:
            if problem := why_no_reward(name):
                raise UserError(f"rewards.{name}: {problem}")
        rewards = load_rewards(entries, None, UserError)
        for reward in (reward for reward in rewards if reward.function):
            for key in set(reward.settings) - set(parameters(reward.function)):
                raise UserError(f"rewards.{reward.name}.{key}: is no parameter of it in rewards.py")
        load_reward_models(rewards)
    except UserError as error:
        print(f"note: no scores: {error}", file=sys.stderr)
        return []
    for reward in rewards:
        if reward.model is not None:
            reward.model.to(DEVICE)
    return rewards


def sampling_arguments(training: dict[str, Any]) -> argparse.Namespace:
    """What `complete` needs of GRPOConfig, which itself refuses batches made for more GPUs than are here."""
    from trl import GRPOConfig

    defaults = {name: field.default for name, field in GRPOConfig.__dataclass_fields__.items()}
    return argparse.Namespace(**defaults | training)


def eos_token_ids(model, tokenizer) -> list[int]:
    """As TRL has them: every one that the model declares, and the tokenizer's."""
    declared = model.generation_config.eos_token_id
    return list({tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None})
