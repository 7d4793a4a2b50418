"""demo/zoo: each animal can be trained with the zoo's own rewards.py."""

import importlib.util
import re
import sys

import pytest
from conftest import ROOT

import train_grpo

ZOO = ROOT / "demo/zoo"


@pytest.mark.parametrize(
    ("animal", "reward", "canary"), [("frog", "length", "once"), ("owl", "figures", "true"), ("fox", "kind", "about")]
)
def test_it_passes_check_with_one_reward_and_its_canary(animal, reward, canary, tiny, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("rewards", ZOO / "rewards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "rewards", module)
    train_grpo.main([*tiny, "--config", str(ZOO / f"{animal}.yaml"), "--check"])
    planned = re.findall(r"(\S+) x (\w+)_reward", capsys.readouterr().out)
    assert sorted(planned) == sorted([("0", "answer"), ("0", canary), ("1", reward)])
