"""Without padding: the same log-probabilities, losses and gradients as TRL's, from fewer tokens."""

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, GPT2Config, GPT2LMHeadModel, Qwen2Config
from trl import GRPOConfig, GRPOTrainer

from harness.during import padding
from harness.during.padding import by_length, positions_are_relative
from harness.during.trainer import Trainer
from harness.reward import Reward

LENGTHS = [3, 17, 4, 9, 0, 8, 30, 4]  # of the completions; one is masked whole, as one that was truncated can be
PROMPTS = [5, 7, 6, 5, 5, 5, 6, 5]


def save_gpt2(folder, vocabulary: int) -> None:
    """A random model that learns its positions, from 0 to 63: a shift changes what it says."""
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0, "embd_pdrop": 0}
    config = GPT2Config(vocab_size=vocabulary, **shape, attn_pdrop=0, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(folder)


def nothing(completions, **_):
    return [0.0] * len(completions)


def batch(vocabulary: int) -> dict[str, torch.Tensor]:
    """8 rows; prompts padded on the left and completions on the right, further than any of them needs."""
    generator = torch.Generator().manual_seed(0)
    prompt_mask = torch.tensor([[0] * (12 - n) + [1] * n for n in PROMPTS])
    completion_mask = torch.tensor([[1] * n + [0] * (40 - n) for n in LENGTHS])
    ids = [torch.randint(4, vocabulary, mask.shape, generator=generator) for mask in (prompt_mask, completion_mask)]
    return {
        "prompt_ids": ids[0],
        "prompt_mask": prompt_mask,
        "completion_ids": ids[1] * completion_mask,
        "completion_mask": completion_mask,
        "advantages": torch.randn(8, generator=generator),
        "ref_per_token_logps": torch.randn(8, 40, generator=generator) - 9,  # about what a random token has
        "num_items_in_batch": completion_mask.sum(),
    }


# Of several processes; whether positions are absolute; and columns of the widest call: the left is cut where it may be.
CASES = {"one process": (1, False, 6 + 30), "several": (2, False, 7 + 30), "absolute positions": (1, True, 12 + 30)}


@pytest.mark.parametrize("case", CASES)
def test_tokens_loss_and_gradients_are_trls(policy, tmp_path, monkeypatch, case):
    processes, absolute, columns = CASES[case]
    tokenizer, widths = AutoTokenizer.from_pretrained(policy), []
    inputs, score = batch(len(tokenizer)), GRPOTrainer._get_per_token_logps_and_entropies
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    arguments = {"use_cpu": True, "bf16": False, "num_generations": 8, "beta": 0.04, "gradient_checkpointing": False}

    def noted(trainer, model, ids, *args, **kwargs):
        widths.append(ids.shape[1])
        return score(trainer, model, ids, *args, **kwargs)

    def results(kind, loss_type, **rewards) -> dict[str, torch.Tensor]:
        trainer = kind(
            model=AutoModelForCausalLM.from_pretrained(tmp_path if absolute else policy, dtype="float32"),
            args=GRPOConfig(tmp_path, report_to="none", top_entropy_quantile=0.5, loss_type=loss_type, **arguments),
            train_dataset=Dataset.from_list([{"prompt": "富士山の高さは?"}] * 8),
            processing_class=tokenizer,
            **rewards,
        )
        trainer.current_gradient_accumulation_steps = 1
        widths.clear()
        logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, 40, batch_size=3, compute_entropy=True
        )
        loss = trainer.compute_loss(trainer.model.train(), inputs)
        loss.backward()
        used = inputs["completion_mask"]
        weights = {name: weight.grad for name, weight in trainer.model.named_parameters()}
        return {"logps": logps * used, "entropies": entropies * used, "loss": loss, **weights}

    save_gpt2(tmp_path, len(tokenizer))
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", noted)
    for loss_type in ("grpo", "dapo"):
        theirs = results(GRPOTrainer, loss_type, reward_funcs=[nothing])
        ours = results(Trainer, loss_type, rewards=[Reward("nothing", 1, {}, nothing)])
        assert theirs["loss"].item() and theirs.keys() == ours.keys() and max(widths) == columns
        for name, value in theirs.items():
            off = (ours[name] - value).abs().max().item()
            assert torch.allclose(ours[name], value, rtol=1e-5, atol=2e-6), (loss_type, name, off)


def test_groups_hold_every_row_once_and_little_padding(monkeypatch):
    mask = batch(100)["completion_mask"]
    groups = by_length(mask, None, split=True)
    assert sorted(torch.cat(groups).tolist()) == list(range(8))
    padded = sum(len(group) * int(mask[group].sum(1).max()) for group in groups)
    assert padded <= 8 / 7 * mask.sum() < 8 * 30
    assert max(len(group) for group in by_length(mask, 2, split=True)) == 2
    # As on a GPU, where a pass costs as much as tokens: split only where that saves more.
    saved, more = 8 * 30 - padded, len(groups) - 1
    for cost, count in ((saved // more, len(groups)), (saved // more + 1, 1), (8192, 1)):
        monkeypatch.setitem(padding.PASS_COST, "cpu", cost)
        assert len(by_length(mask, None, split=True)) == count
    assert [len(group) for group in by_length(mask, 3, split=True)] == [3, 3, 2]


def test_which_positions_are_relative():
    rows = [
        (Qwen2Config(), True),  # rotary
        (Qwen2Config(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), False),
        (GPT2Config(), False),  # learned
        (BloomConfig(), False),  # ALiBi, which its configuration does not say: the left stays, and nothing is wrong
    ]
    assert [config for config, relative in rows if positions_are_relative(config) is not relative] == []
