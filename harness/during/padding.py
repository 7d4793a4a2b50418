"""Log-probabilities without the padding: rows of like length go through the model together, cut to the longest.

TRL pads a whole generation batch to its longest completion and keeps that width through the reference, old-policy and
training passes. Without the padding each token's log-probability is the same, up to the rounding of a matrix product:
padding on the right is never looked at, and padding on the left only shifts the positions. Where positions are absolute
(GPT-2), a shift counts, so the left is cut only where they are relative.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig

# What one more pass through the model costs beside its tokens, in tokens: on a GPU, launching its kernels takes as long
# as computing this many (benchmarks/README.md, "On a GPU").
PASS_COST = {"cpu": 0, "cuda": 8192}


def by_length(mask: torch.Tensor, rows: int | None, split: bool) -> list[torch.Tensor]:
    """Row indices of `mask`, (batch, tokens), in groups of like length, of `rows` at most.

    A new group begins where the next row would make more than an eighth of the group's tokens padding; but all go
    together where groups save fewer tokens than their passes cost. Without `split` the rows stay in their order, and
    are only divided: with several processes each has to call the model equally often.
    """
    order, most = torch.arange(len(mask), device=mask.device), rows or len(mask)
    if not split:
        return list(order.split(most))
    lengths, order = mask.sum(1).sort(stable=True)
    groups, begin, real = [], 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > begin and ((i + 1 - begin) * length > 8 / 7 * (real + length) or i - begin == most):
            groups.append(order[begin:i])
            begin, real = i, 0
        real += length
    groups.append(order[begin:])
    together = list(order.split(most))
    saved = _tokens(mask, together) - _tokens(mask, groups)
    a_pass = PASS_COST.get(mask.device.type, PASS_COST["cuda"])
    return groups if saved >= a_pass * (len(groups) - len(together)) else together


def _tokens(mask: torch.Tensor, groups: list[torch.Tensor]) -> int:
    """With the padding."""
    return sum(len(group) * int(mask[group].sum(1).max()) for group in groups)


def positions_are_relative(config: PreTrainedConfig) -> bool:
    """Whether a model sees only the distance between two tokens (rotary, ALiBi), so that both may be shifted."""
    text = config.get_text_config()
    rotary = getattr(text, "rope_parameters", None)
    by_length = any(kind in str(rotary) for kind in ("dynamic", "longrope"))  # their angles depend on the whole length
    return (rotary is not None and not by_length) or bool(getattr(text, "alibi", False))


def without_padding(
    logps_of: Callable,
    groups: list[torch.Tensor],
    model,
    ids: torch.Tensor,
    mask: torch.Tensor,
    keep: int,
    entropy: bool,
    cut_left: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, None]:
    """`logps_of`, GRPOTrainer._get_per_token_logps_and_entropies, on each group cut to its own tokens.

    Args:
        ids, mask: (batch, tokens), prompts padded on the left, completions on the right.
        keep: how many of the last tokens are completion.
        cut_left: see positions_are_relative.

    Returns log-probabilities and entropies, (batch, keep), in the order of `ids`; 0 where a completion is padding.
    """
    parts = []
    for group in groups:
        used = mask[group].any(0).nonzero()
        # One column of completion stays, for rows of which mask_truncated_completions leaves nothing.
        left = int(used[0]) if cut_left else 0
        right = min(mask.shape[1] - 1 - int(used[-1]), keep - 1)
        cut = slice(left, mask.shape[1] - right)
        logps, entropies, _ = logps_of(model, ids[group, cut], mask[group, cut], keep - right, compute_entropy=entropy)
        parts.append([F.pad(values, (0, right)) for values in ((logps, entropies) if entropy else (logps,))])
    back = torch.cat(groups).argsort()
    logps, *entropies = (torch.cat(values)[back] for values in zip(*parts, strict=True))
    return logps, *(entropies or [None]), None
