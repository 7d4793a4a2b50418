"""policy: why a model does not load; the attention that it gets."""

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from harness.before.policy import loading_problem, usable_attention

CAUSES = [
    ("org/model", GatedRepoError.__new__(GatedRepoError), "hf auth login"),
    ("org/model", RepositoryNotFoundError.__new__(RepositoryNotFoundError), "no org/model on the Hub"),
    ("org/model", LocalEntryNotFoundError("no network"), "cannot be reached"),
    ("org/model", PermissionError(13, "Permission denied", "/cache"), "HF_HOME"),
    ("org/model", ValueError("any other"), "We could not"),
    ("model.gguf", ValueError("not JSON"), "GGUF"),
    ("LICENSE", ValueError("not JSON"), "not JSON"),
]


def test_why_a_model_does_not_load_is_said_in_one_line(monkeypatch):
    monkeypatch.chdir(__file__.rpartition("/tests/")[0])
    for name, cause, word in CAUSES:
        try:
            raise OSError("We could not\nload it.") from cause
        except OSError as error:
            message = loading_problem(name, error)
        assert word in message and "\n" not in message


def test_flash_attention_is_used_where_it_loads_and_else_said_to_be_left_out(monkeypatch):
    assert [usable_attention(name) for name in (None, "eager", "sdpa")] == [(None, ""), ("eager", ""), ("sdpa", "")]
    found, fallback = usable_attention("flash_attention_2")
    assert found is None and "no CUDA GPU" in fallback
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "ImportError" in usable_attention("flash_attention_2")[1]
    monkeypatch.setattr("harness.before.policy.lazy_import_flash_attention", lambda name: None)
    assert usable_attention("flash_attention_2") == ("flash_attention_2", "")
    with pytest.raises(ValueError, match="unknown 'flash'"):
        usable_attention("flash")
