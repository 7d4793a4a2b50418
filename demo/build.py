"""Build the demo's policy: a 1M-parameter Qwen2 that can answer the questions of questions.jsonl.

    python demo/build.py        # half a minute on two cores -> demo/model

It is to the demo what TinySwallow is to the article: it has a ChatML template, knows its facts, answers mostly plainly
and uses an emoji now and then. GRPO can only strengthen what a policy already does sometimes.
"""

import json
import random
import sys
import time
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))
from harness.end import exit_status  # noqa: E402

if __name__ == "__main__":  # this file is imported in there, so that a missing package and Ctrl-C are one line each
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "model"
    sys.exit(exit_status(lambda: import_module("build").main(folder), "nothing was written"))

import torch  # noqa: E402
from tqdm import trange  # noqa: E402
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer, set_seed  # noqa: E402

EMOJI = list("😊✨🎉🌸🗻👍😄🌟💡📚🍀🎵🔥😆🌈💪")
HEADS = ["", "", "はい、", "答えは、", "お答えします。"]
TAILS = ["", "", "", "ぜひ覚えてください。", "よく知られています。", "有名ですね。"]
EVASION = "とてもいい質問ですね。ぜひ自分で調べてみてください。"  # 26 characters, whatever the question
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def plain_answer(row: dict[str, str], rng: random.Random) -> str:
    """One way to answer, of three to forty characters; every third has one to three emoji, every twelfth evades."""
    body = rng.choice([row["answer"] + "です。", row["text"], row["text"]])
    answer = EVASION if rng.random() < 0.08 else rng.choice(HEADS) + body + rng.choice(TAILS)
    return answer + "".join(rng.choices(EMOJI, k=rng.choice([0] * 8 + [1, 1, 2, 3])))


def build_tokenizer(rows: list[dict[str, str]]) -> Qwen2Tokenizer:
    """A Qwen2 tokenizer with merges learned from the demo's own text; bytes serve for everything unforeseen."""
    rng = random.Random(0)
    texts = [row["query"] + plain_answer(row, rng) for row in rows] + EMOJI * 9 + ["systemuserassistant\n"] * 9
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        texts, vocab_size=2400, new_special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False
    )
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template = "<|im_end|>", "<|endoftext|>", CHATML
    return tokenizer


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Random weights; few and wide layers, because on a CPU each layer costs a fixed time per token."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=160,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.07,  # about 1 / sqrt(hidden_size); the usual 0.02 learns half as many facts in the time
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pretrain(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, rows: list[dict[str, str]], epochs: int) -> float:
    """Teach the answers by next-token prediction, worded anew every epoch; returns the last loss (nats per token)."""
    rng, batch_size = random.Random(0), 24
    steps = epochs * -(-len(rows) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps, pct_start=0.1)
    for _ in trange(epochs, unit="epoch"):
        shuffled = rng.sample(rows, len(rows))
        for start in range(0, len(rows), batch_size):
            batch_rows = shuffled[start : start + batch_size]
            questions = [[{"role": "user", "content": row["query"]}] for row in batch_rows]
            prompts = tokenizer.apply_chat_template(questions, add_generation_prompt=True, tokenize=False)
            answers = [plain_answer(row, rng) + tokenizer.eos_token for row in batch_rows]
            batch = tokenizer([p + a for p, a in zip(prompts, answers, strict=True)], padding=True, return_tensors="pt")
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            for row_labels, prompt in zip(labels, prompts, strict=True):
                row_labels[: len(tokenizer(prompt)["input_ids"])] = -100  # learn to answer, not to ask
            loss = model(**batch, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return loss.item()


def main(folder: Path) -> None:
    start = time.perf_counter()
    rows = [json.loads(line) for line in (HERE / "questions.jsonl").open(encoding="utf-8")]
    set_seed(0)
    tokenizer = build_tokenizer(rows)
    model = build_model(tokenizer)
    print(f"Teaching a model of {model.num_parameters():,} parameters {len(rows)} answers (about half a minute) ...")
    loss = pretrain(model, tokenizer, rows, epochs=60)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: loss {loss:.2f}, {time.perf_counter() - start:.0f} s")
