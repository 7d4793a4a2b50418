"""The command line of train_grpo.py: a few switches, files, and any key of config.yaml."""

import argparse

from harness.exits import UserError

HELP = """\
sections of config.yaml, and where their keys are documented:
  model      transformers AutoModelForCausalLM.from_pretrained   training   trl GRPOConfig
  dataset    datasets load_dataset                               lora       peft LoraConfig
  prompts, rewards, samples                                      the comments in config.yaml
  (every training key: python -c "from trl import GRPOConfig; help(GRPOConfig)")

examples:
  python train_grpo.py --check                                what would happen, without a GPU minute
  python train_grpo.py --config recipes/lora.yaml             a few lines laid over config.yaml
  python train_grpo.py --training.learning_rate 2e-6          one value
  python train_grpo.py --resume                               go on where a stopped run was saved last
  python train_grpo.py --config outputs/article/config.yaml --training.output_dir outputs/again
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line: a few switches, `--config FILE`s, and `--section.key VALUE` overrides in `overrides`."""
    parser = argparse.ArgumentParser(
        prog="train_grpo.py",
        usage="train_grpo.py [--config FILE ...] [--section.key VALUE ...] [--resume | --check | --print_config]",
        description="Teach a language model with GRPO what config.yaml and rewards.py say.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="lay FILE over config.yaml")
    parser.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint")
    parser.add_argument("--check", action="store_true", help="check everything, print the plan, and stop")
    parser.add_argument("--print_config", action="store_true", help="print the effective settings as YAML, and stop")
    options, rest = parser.parse_known_args(arguments)
    options.overrides = {}
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise UserError(f"{name}: not an option; write --section.key VALUE or --config FILE")
        if not equals:
            if not rest:
                raise UserError(f"{name[2:]}: has no value; write {name} VALUE")
            value = rest.pop(0)
        options.overrides[name[2:]] = value
    return options
