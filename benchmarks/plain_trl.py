"""The demo's job with TRL alone; benchmarks/overhead.py compares it with train_grpo.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from rewards import answer_reward, emoji_reward, length_reward

output_dir, steps = sys.argv[1], int(sys.argv[2])
dataset = load_dataset("json", data_files="demo/questions.jsonl", split="train")
dataset = dataset.map(lambda row: {"prompt": [{"role": "user", "content": row["query"]}]})
trainer = GRPOTrainer(
    model=AutoModelForCausalLM.from_pretrained("demo/model", dtype=torch.float32, attn_implementation="sdpa"),
    reward_funcs=[emoji_reward, length_reward, answer_reward],
    args=GRPOConfig(
        output_dir=output_dir,
        reward_weights=[1, 2, 4],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        num_generations=8,
        per_device_train_batch_size=64,
        gradient_accumulation_steps=1,
        max_steps=steps,
        max_completion_length=64,
        temperature=0.9,
        learning_rate=6e-4,
        beta=0.04,
        loss_type="grpo",
        logging_steps=5,
        save_steps=50,
        save_total_limit=2,
        report_to="none",
        seed=42,
    ),
    train_dataset=dataset,
    processing_class=AutoTokenizer.from_pretrained("demo/model"),
)
trainer.train()
trainer.save_model()
trainer.save_state()
