"""Teach a language model with GRPO what config.yaml and rewards.py say.

python train_grpo.py --check                           # what would happen, without a GPU minute
python train_grpo.py                                   # the article's run, on one CUDA GPU
python train_grpo.py --config recipes/lora.yaml        # a few lines laid over config.yaml
python train_grpo.py --training.learning_rate 2e-6     # one value
"""

import sys
import warnings

from harness.exits import exit_status, failures_logged
from harness.settings import parse_arguments, read_settings


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    settings = read_settings(options.config, options.overrides)
    if options.print_config:
        return print(settings.as_yaml(), end="")

    # These imports take seconds; a mistake in the settings has been told before them.
    from transformers import AutoModelForCausalLM
    from trl import GRPOTrainer

    from harness.data import hold_out, load_prompts
    from harness.models import build_rewards, load_reward_model, load_tokenizer, usable_attention
    from harness.preflight import check_machine, preflight, training_arguments
    from harness.report import Report

    check_machine(settings)
    args, lora = training_arguments(settings)
    model_config, tokenizer = load_tokenizer(settings.model)
    dataset, dropped = load_prompts(settings.dataset, settings.prompts, tokenizer)
    dataset, held_out = hold_out(dataset, settings.samples.held_out, args.seed)
    reward_functions = build_rewards(settings.rewards)
    attention, why = usable_attention(settings.model.get("attn_implementation"))
    preflight(
        settings, args, lora, model_config, tokenizer, dataset, held_out, dropped, reward_functions, attention, why
    )
    if options.check:
        return

    with failures_logged(args.output_dir):
        model = AutoModelForCausalLM.from_pretrained(**{**settings.model, "attn_implementation": attention})
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[load_reward_model(f) if isinstance(f, str) else f for f in reward_functions],
            args=args,
            train_dataset=dataset,
            eval_dataset=held_out if args.eval_strategy != "no" else None,
            processing_class=tokenizer,
            peft_config=lora,
        )
        report = Report(trainer, settings, held_out)
        trainer.train()
        trainer.save_model(_internal_call=True)  # without a push, which comes when the report is complete
        trainer.save_state()
        report.finish()
        if args.push_to_hub:
            trainer.push_to_hub()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL's, on what transformers 6 will rename
    sys.exit(exit_status(main))
