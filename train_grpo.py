"""Teach a language model with GRPO what config.yaml and rewards.py say.

python train_grpo.py                                   # the article's run, on one CUDA GPU
python train_grpo.py --config recipes/lora.yaml        # a few lines laid over config.yaml
python train_grpo.py --training.learning_rate 2e-6     # one value
"""

import sys

from harness.settings import UserError, parse_arguments, read_settings


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    settings = read_settings(options.config, options.overrides)

    import torch  # the heavy imports wait until the settings are known to be right
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from harness.data import load_prompts
    from harness.models import build_rewards, load_tokenizer, usable_attention
    from harness.report import write_report

    if not (torch.cuda.is_available() or settings.training.get("use_cpu")):
        raise UserError("machine: no CUDA GPU found; `make demo` runs the same code on a laptop")

    settings.model["attn_implementation"] = usable_attention(settings.model.get("attn_implementation"))
    tokenizer = load_tokenizer(settings.model)
    dataset = load_prompts(settings.dataset, settings.prompts, tokenizer)
    reward_functions, reward_weights = build_rewards(settings.rewards)
    model = AutoModelForCausalLM.from_pretrained(**settings.model)

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward_functions,
        args=GRPOConfig(**settings.training, reward_weights=reward_weights),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=LoraConfig(**settings.lora) if settings.lora else None,
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    write_report(trainer, settings)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
