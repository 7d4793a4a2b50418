"""demo/zoo: each animal can be trained with the zoo's own rewards.py."""

import re

from conftest import ROOT

import train_grpo

ANIMALS = {"frog": ("length", "once"), "owl": ("figures", "true"), "fox": ("kind", "about")}  # its reward, its canary


def test_each_passes_check_with_one_reward_and_its_canary(tiny, capsys):
    tiny += ["--rewards_file", str(ROOT / "demo/zoo/rewards.py")]
    for animal, (reward, canary) in ANIMALS.items():
        train_grpo.main([*tiny, "--config", str(ROOT / f"demo/zoo/{animal}.yaml"), "--check"])
        planned = re.findall(r"(\S+) x (\w+)_reward", capsys.readouterr().out)
        assert sorted(planned) == sorted([("0", "answer"), ("0", canary), ("1", reward)]), animal
