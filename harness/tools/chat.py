"""Ask the base model and the trained one the same questions, and see both answers with every reward's score.

python -m harness chat outputs/a                      # type questions; an empty line or Ctrl-D ends it
python -m harness chat outputs/a < questions.txt      # one per line
"""

import argparse
import readline  # noqa: F401  so that input() can be edited
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

from harness.errors import RewardError, UserError, in_short, one_line
from harness.keys import typed_rewards
from harness.processes import quiet
from harness.reward import Reward, load_rewards, score_words
from harness.rewards_file import use
from harness.run_folder import RunFolder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the output_dir of a run")
    folder = RunFolder(parser.parse_args(arguments).folder)
    settings = folder.trained()

    # These imports take seconds; a wrong folder has been reported before them.
    from transformers import AutoTokenizer, TrainerState

    from harness.after.samples import complete, score
    from harness.before.data import prompt_text
    from harness.before.messages import as_messages
    from harness.before.policy import changes_base, eos_token_ids, load_model

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder.path)
        trained = load_model(settings["model"], folder.path)
        # Of a LoRA run one model is both, its adapter switched off and on; but of one that has changed the base.
        switched = folder.is_lora() and not changes_base(trained.active_peft_config)
        base = trained if switched else load_model(settings["model"])
        rewards = its_rewards(folder, settings["rewards"])
    sampling = sampling_arguments(settings["training"])
    ends = eos_token_ids(base.generation_config, tokenizer)
    state = TrainerState.load_from_json(folder.state_file)

    def answer(model, prompt: list[dict]) -> str:
        """Its answer, and the scores below it."""
        texts, ids = complete(model, tokenizer, [prompt], sampling, ends)
        text = texts[0]
        if rewards:
            try:
                scores = score(rewards, [{"prompt": prompt}], texts, ids, state)
                text += f"\n  ({score_words(scores[0])})"
            except RewardError as problem:  # as where its server is down
                print(f"note: no scores: {problem}", file=sys.stderr)
                rewards.clear()
        return text

    for question in questions():
        try:
            prompt = as_messages(question, settings["prompts"].get("system"))
            prompt_text(prompt, tokenizer, sampling.chat_template_kwargs or {})
        except Exception as error:  # a template is code of the user's
            raise UserError(f"{one_line(question, 40)}: the template of {folder}: {in_short(error)}") from error
        print(f"\n{question}")
        with trained.disable_adapter() if switched else nullcontext():
            print(f"  base: {answer(base, prompt)}")
        print(f"  trained: {answer(trained, prompt)}")


def questions() -> Iterator[str]:
    """What is typed, up to an empty line or Ctrl-D; or each line of stdin that is not empty."""
    typed = sys.stdin.isatty()
    while True:
        try:
            question = input("question: " if typed else "").strip()
        except EOFError:
            return
        if question:
            yield question
        elif typed:
            return


def its_rewards(folder: RunFolder, entries: dict[str, dict]) -> list[Reward]:
    """The run's rewards, loaded, also those that the run left out as its data lack a column.

    They are functions of its own rewards.py; where that does not run any more, there are none, and a line that says so.
    """
    from harness.before.policy import DEVICE, load_reward_models

    def error(key: str, problem: str) -> UserError:
        return UserError(f"{key}: {problem}")

    use(folder.rewards_file)
    try:
        rewards = load_rewards(typed_rewards(entries, error, {}), None, error)
        load_reward_models(rewards)
    except UserError as problem:
        print(f"note: no scores: {problem}", file=sys.stderr)
        return []
    for reward in rewards:
        if reward.model is not None:
            reward.model.to(DEVICE)
    return rewards


def sampling_arguments(training: dict) -> argparse.Namespace:
    """What `complete` needs of GRPOConfig, which itself refuses batches made for more GPUs than are here."""
    from trl import GRPOConfig

    defaults = {field.name: field.default for field in fields(GRPOConfig)}
    return argparse.Namespace(**defaults | training)
