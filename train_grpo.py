"""Teach a language model with GRPO what config.yaml and rewards.py say.

python train_grpo.py --check                           # what would happen, without a GPU minute
python train_grpo.py                                   # the article's run, on one CUDA GPU
python train_grpo.py --config recipes/lora.yaml        # a few lines laid over config.yaml
python train_grpo.py --training.learning_rate 2e-6     # one value
python train_grpo.py --placebo                         # the rewards shuffled: how far chance alone moves the policy
python train_grpo.py --resume                          # go on where a stopped run was saved last

TRL's GRPOTrainer trains. What differs from TRL alone:
- Held-out questions are asked before and after; the verdict on the answers is the last line.
- The same losses are computed without the padding; the best of each group is logged beside the mean.
- A signal lets the optimizer step end and saves it; --resume goes on exactly, in the data's order too.
- A step whose gradient is not finite is not taken, and weights that are not finite are not saved.
- cuDNN's attention is off, as it gives NaN at some lengths; sampling is compiled where that was measured.
- A reward returns one finite number per completion, or None; anything else ends the run and names the row.
"""

import os
import sys

from harness.end import be_silent, exit_status, go_offline_without_network
from harness.processes import rank


def main(arguments: list[str] | None = None) -> None:
    from harness.settings import read_settings

    if rank():
        be_silent()

    settings = read_settings(arguments, description=__doc__.rpartition("\n\n")[0])
    if settings.training.get("use_cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nothing is to look at a GPU, which would start CUDA there

    # These imports take seconds; a mistake in the settings has been reported before them.
    from transformers import ProgressCallback

    from harness.after.report import Report
    from harness.before.arguments import settle, training_arguments
    from harness.before.check import check_output, check_run
    from harness.before.data import load_data
    from harness.before.machine import check_machine
    from harness.before.plan import Plan
    from harness.before.policy import load_policy, load_reward_models
    from harness.before.resume import begin, decide
    from harness.during.checkpoints import Checkpoints
    from harness.during.progress import Progress
    from harness.during.stop import stop
    from harness.during.trainer import Trainer
    from harness.during.watch import Watch
    from harness.processes import first_decides
    from harness.reward import load_rewards
    from harness.run_folder import RunFolder
    from harness.tools.rehearse import rehearse

    check_machine(settings)
    folder = RunFolder(settings.training["output_dir"])
    resume = decide(settings, folder)  # whether this goes on with a run that was stopped
    with stop.left_to_system():  # while it waits for the other processes of this run
        args, lora = training_arguments(settings)  # GRPOConfig, LoraConfig
    policy = load_policy(settings)
    with args.main_process_first():  # one process of each machine maps the rows, the others read its cache
        data = load_data(settings, policy.tokenizer)
    rewards = load_rewards(settings.rewards, data.train.column_names, settings.error)
    compiled = settle(settings, args, lora, policy, data.longest)
    plan = Plan(settings, args, lora, policy, data, rewards, compiled)
    check_run(plan)
    if settings.options.rehearse:
        return rehearse(plan)
    first_decides(lambda: check_output(plan, folder, resume))  # on the first process alone, for all
    plan.show()
    if settings.options.check:
        return

    with folder.locked():
        checkpoint = first_decides(lambda: begin(plan, folder, resume))  # the one to go on from; the run is recorded
        load_reward_models(rewards)
        trainer = Trainer(
            model=policy.load(),
            rewards=rewards,
            args=args,
            train_dataset=data.train,
            eval_dataset=data.held_out if args.eval_strategy != "no" else None,
            processing_class=policy.tokenizer,
            peft_config=lora,
            placebo=settings.options.placebo,
        )
        watch = Watch(plan, trainer.model)
        report = Report(trainer, plan, watch, folder)
        checkpoints = Checkpoints(trainer, folder, checkpoint)
        trainer.remove_callback(ProgressCallback)
        for callback in (Progress(plan), watch, report, checkpoints):  # each is called before those behind it
            trainer.add_callback(callback)
        with stop.after_step(), checkpoints.failed_save_reported():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            trainer.save_model(_internal_call=True)  # without a push, which comes when the report is complete
            trainer.save_state()
        report.finish()
        if args.push_to_hub:
            trainer.push_to_hub()


if __name__ == "__main__":
    go_offline_without_network()
    sys.exit(exit_status(main))
