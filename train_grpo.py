"""Teach a language model with GRPO what config.yaml and rewards.py say.

python train_grpo.py --check                           # what would happen, without a GPU minute
python train_grpo.py                                   # the article's run, on one CUDA GPU
python train_grpo.py --config recipes/lora.yaml        # a few lines laid over config.yaml
python train_grpo.py --training.learning_rate 2e-6     # one value
python train_grpo.py --resume                          # go on where a stopped run was saved last
"""

import sys
import warnings

from harness.exits import exit_status, failures_logged


def main(arguments: list[str] | None = None) -> None:
    from harness.command_line import parse_arguments
    from harness.settings import read_settings  # and with it rewards.py

    options = parse_arguments(arguments)
    settings = read_settings(options.config, options.overrides)
    if options.print_config:
        return print(settings.as_yaml(), end="")

    # These imports take seconds; a mistake in the settings has been told before them.
    from transformers import AutoModelForCausalLM

    from harness.checkpoints import Checkpoints, check_same_run, newest_complete, sole_run
    from harness.data import load_data
    from harness.models import build_rewards, load_policy, load_reward_model
    from harness.preflight import check_machine, preflight, training_arguments
    from harness.report import Report
    from harness.trainer import Trainer

    if options.resume:
        check_same_run(settings)
    check_machine(settings)
    args, lora = training_arguments(settings)
    policy = load_policy(settings.model)
    data = load_data(settings, policy.tokenizer)
    reward_functions = build_rewards(settings.rewards)
    preflight(settings, args, lora, policy, data, reward_functions, options.resume)
    if options.check:
        return

    with sole_run(args), failures_logged(args.output_dir):
        with args.main_process_first():
            checkpoint = newest_complete(args.output_dir) if options.resume else None
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(**{**settings.model, "attn_implementation": policy.attention}),
            reward_funcs=[load_reward_model(f) if isinstance(f, str) else f for f in reward_functions],
            args=args,
            train_dataset=data.train,
            eval_dataset=data.held_out if args.eval_strategy != "no" else None,
            processing_class=policy.tokenizer,
            peft_config=lora,
        )
        report = Report(trainer, settings, data.held_out, options.resume)
        trainer.add_callback(Checkpoints(args))
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        trainer.save_model(_internal_call=True)  # without a push, which comes when the report is complete
        trainer.save_state()
        report.finish()
        if args.push_to_hub:
            trainer.push_to_hub()


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL's, on what transformers 6 will rename
    sys.exit(exit_status(main))
