"""Teach a language model with GRPO what config.yaml and rewards.py say.

python train_grpo.py --check                           # what would happen, without a GPU minute
python train_grpo.py                                   # the article's run, on one CUDA GPU
python train_grpo.py --config recipes/lora.yaml        # a few lines laid over config.yaml
python train_grpo.py --training.learning_rate 2e-6     # one value
python train_grpo.py --resume                          # go on where a stopped run was saved last
"""

import sys

from harness.exits import exit_status, go_offline_without_network, outcome_written


def main(arguments: list[str] | None = None) -> None:
    from harness.settings import read_settings, training_arguments  # and with it rewards.py

    settings = read_settings(arguments, description=__doc__)

    # These imports take seconds; a mistake in the settings has been reported before them.
    from transformers import AutoModelForCausalLM, ProgressCallback

    from harness.check import check_machine, check_run
    from harness.checkpoints import Checkpoints, first_decides, newest_complete, resolve_resume, sole_run
    from harness.loading import load_data, load_policy, load_reward_model
    from harness.record import check_same_run, check_same_settings, note_other_rewards, write_record
    from harness.rehearse import fit, rehearsal, rehearse
    from harness.report import Progress, Report
    from harness.rewarding import build_rewards
    from harness.trainer import Trainer

    check_machine(settings)
    if settings.options.fit:
        return fit(settings, arguments)
    settings.options.resume = resolve_resume(settings.options.resume, settings.training)
    args, lora = training_arguments(settings)
    if settings.options.resume:
        check_same_settings(settings, args.output_dir)
    policy = load_policy(settings)
    with args.main_process_first():  # one process of each machine maps the rows, the others read its cache
        data = load_data(settings, policy.tokenizer)
    if settings.options.resume:
        check_same_run(args, data)
    note_other_rewards(settings)
    rewards = build_rewards(settings, data.train.column_names)
    args.reward_weights = [entry["weight"] for entry in settings.rewards.values()]
    size = check_run(settings, args, lora, policy, data, rewards)
    if settings.options.check:
        return

    with rehearsal(args, settings), sole_run(args), outcome_written(args.output_dir):
        checkpoint = first_decides(args, lambda: newest_complete(args.output_dir, settings.options.resume))
        found = {"pretrained_model_name_or_path": policy.name, "attn_implementation": policy.attention}
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(**settings.model | found),
            reward_funcs=[load_reward_model(reward) if isinstance(reward, str) else reward for reward in rewards],
            args=args,
            train_dataset=data.train,
            eval_dataset=data.held_out if args.eval_strategy != "no" else None,
            processing_class=policy.tokenizer,
            peft_config=lora,
        )
        if settings.options.rehearse:
            return rehearse(trainer, settings, data, size)
        report, checkpoints = Report(trainer, settings, data), Checkpoints(trainer, checkpoint)
        trainer.remove_callback(ProgressCallback)
        for callback in (Progress(), report.watch, report, checkpoints):
            trainer.add_callback(callback)
        if args.process_index == 0:
            write_record(settings, args, data)
        report.watch.look_at_untrained(trainer.model)
        with checkpoints.rescue():
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            trainer.save_model(_internal_call=True)  # without a push, which comes when the report is complete
            trainer.save_state()
        report.finish()
        if args.push_to_hub:
            trainer.push_to_hub()


if __name__ == "__main__":
    go_offline_without_network()
    sys.exit(exit_status(main))
