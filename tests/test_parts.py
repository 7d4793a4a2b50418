"""What --check passes starts: each setting goes through --check and, where it passes, through a run of two steps."""

import shutil

import pytest

import train_grpo
from harness.errors import UserError

LORA = ["--lora", "{r: 4, target_modules: [q_proj]}"]
SETTINGS = [  # under `training`, words of the refusal or None, more arguments
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "training.lr_scheduler_type: One of min_lr or min_lr_rate"),
    ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": "{min_lr: 1e-5}"}, None),
    ({"lr_scheduler_type": "warmup_stable_decay"}, "training.lr_scheduler_type: "),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": "{num_cycle: 2}"}, "lr_scheduler_kwargs.num_cycle"),
    ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": "{lr_end: 1}"}, "training.lr_scheduler_kwargs.lr_end"),
    ({"optim": "paged_adamw_8bit"}, "training.optim: You need to install `bitsandbytes`"),
    ({"optim": "galore_adamw"}, "training.optim: You need to install `galore_torch`"),
    ({"optim": "lomo"}, "training.optim: You need to install `lomo_optim`"),
    ({"optim": "sgd", "optim_args": "momentum=high"}, "training.optim_args: could not convert"),
    ({"adam_beta2": 1.5}, "training.adam_beta2: Invalid beta"),
    ({"optim": "adafactor"}, None),
    ({"use_liger_kernel": "true"}, "training.use_liger_kernel: "),
    ({"sync_ref_model": "true"}, "training.sync_ref_model: there is no reference model to sync", *LORA),
    ({"sync_ref_model": "true", "beta": 0}, "training.sync_ref_model: there is no reference model to sync"),
    ({"sync_ref_model": "true", "ref_model_sync_steps": 1}, None),
    ({"generation_kwargs": "{stop_strings: [。]}"}, "training.generation_kwargs.stop_strings: There are one or more"),
    ({"generation_kwargs": "{num_return_sequences: 2}"}, "training.generation_kwargs.num_return_sequences: "),
    ({"generation_kwargs": "{disable_compile: true}"}, "training.generation_kwargs.disable_compile: "),
    ({"generation_kwargs": "{return_dict_in_generate: true}"}, "training.generation_kwargs.return_dict_in_generate: "),
    ({"generation_kwargs": "{do_sample: false}"}, "training.generation_kwargs.do_sample: without sampling"),
    ({"generation_kwargs": "{top_h: 3}"}, "training.generation_kwargs.top_h: "),
    ({"generation_kwargs": "{bad_words_ids: [[99999999]]}"}, "training.generation_kwargs.bad_words_ids: The model"),
    ({"generation_kwargs": "{bad_words_ids: [[7]]}"}, None),
    ({"cache_implementation": "quantized"}, "training.cache_implementation: You need to install"),
    ({"cache_implementation": "static"}, None),
    ({"gradient_checkpointing": "true", "gradient_checkpointing_kwargs": "{foo: 1}"}, "_kwargs.foo: Unexpected"),
    ({"save_strategy": "best"}, "training.save_strategy: best by what?"),
    ({"report_to": "wandb"}, "training.report_to: "),
    ({"mask_truncated_completions": "true", "loss_type": "dapo", "scale_rewards": "batch"}, None),
    ({"learning_rate": "1e-3"}, None, *LORA),
]  # fmt: skip


@pytest.mark.miniature
def test_what_check_passes_starts(tiny, tmp_path):
    wrong = []
    for settings, words, *more in SETTINGS:
        arguments = [part for key, value in settings.items() for part in (f"--training.{key}", str(value))]
        run = [*tiny, "--training.max_steps", "2", "--samples.held_out", "0", *arguments, *more]
        checked, started = outcome([*run, "--check"]), None
        if checked is None:
            started = outcome(run)
            shutil.rmtree(tmp_path / "run")
        if (checked and started) or started or bool(checked) != bool(words) or (words or "") not in (checked or ""):
            wrong.append((settings, checked, started))
    assert not wrong, "\n".join(map(str, wrong))


def outcome(arguments: list[str]) -> str | None:
    """The message that a UserError ends it with; anything else fails the test."""
    try:
        train_grpo.main(arguments)
    except UserError as error:
        return str(error)
    return None
