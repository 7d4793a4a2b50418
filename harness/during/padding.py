"""Log-probabilities without the padding: rows of like length go through the model together, cut to the longest.

TRL pads a whole generation batch to its longest completion and keeps that width through the reference, old-policy and
training passes. Without the padding each token's log-probability is the same, up to the rounding of a matrix product:
padding on the right is never looked at, and padding on the left only shifts the positions. Where positions are absolute
(GPT-2), a shift counts, so the left is cut only where they are relative.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

# What one more pass through the model costs beside its tokens, in tokens: on a GPU, launching its kernels takes as long
# as computing this many (benchmarks/README.md, "On a GPU").
PASS_COST = {"cpu": 0, "cuda": 8192}
MOST_PADDING = 1 / 8  # of a group's tokens


def by_length(mask: Tensor, rows: int | None, split: bool) -> Sequence[Tensor]:
    """Row indices of `mask`, (batch, tokens), in groups of like length, of `rows` at most.

    All go together where groups save fewer tokens than their passes cost. Without `split` the rows stay in their order,
    and are only divided: with several processes each has to call the model equally often.
    """
    most = rows or len(mask)
    together = torch.arange(len(mask), device=mask.device).split(most)
    if not split:
        return together
    lengths, order = mask.sum(1).sort(stable=True)
    groups = order.split(_sizes(lengths.tolist(), most))
    saved = _tokens(mask, together) - _tokens(mask, groups)
    a_pass = PASS_COST[mask.device.type]
    if saved < a_pass * (len(groups) - len(together)):
        return together
    return groups


def _sizes(lengths: list[int], most: int) -> list[int]:
    """How many rows each group has, of rows in the order of their `lengths`; a new one begins at MOST_PADDING."""
    sizes = []
    size = 0
    real = 0
    for length in lengths:
        tokens = (size + 1) * length  # with this row, which is the group's longest
        padding = tokens - real - length
        if size == most or padding > MOST_PADDING * tokens:
            sizes.append(size)
            size = 0
            real = 0
        size += 1
        real += length
    return [*sizes, size]


def _tokens(mask: Tensor, groups: Sequence[Tensor]) -> int:
    """With the padding."""
    return sum(len(group) * int(mask[group].sum(1).max()) for group in groups)


def positions_are_relative(config: PreTrainedConfig) -> bool:
    """Whether a model sees only the distance between two tokens (rotary, ALiBi), so that both may be shifted."""
    text = config.get_text_config()
    if getattr(text, "alibi", False):
        return True
    rotary = getattr(text, "rope_parameters", None)
    if rotary is None:
        return False
    by_the_whole_length = "dynamic" in str(rotary) or "longrope" in str(rotary)
    return not by_the_whole_length


def without_padding(
    logps_of: Callable,
    groups: Sequence[Tensor],
    model: torch.nn.Module,
    ids: Tensor,
    mask: Tensor,
    keep: int,
    entropy: bool,
    cut_left: bool,
) -> tuple[Tensor, Tensor | None, None]:
    """`logps_of`, GRPOTrainer._get_per_token_logps_and_entropies, on each group cut to its own tokens.

    Args:
        ids, mask: (batch, tokens), prompts padded on the left, completions on the right.
        keep: how many of the last tokens are completion.
        cut_left: see positions_are_relative.

    Returns log-probabilities and entropies, (batch, keep), in the order of `ids`; 0 where a completion is padding.
    """
    width = mask.shape[1]
    logps = []
    entropies = []
    for group in groups:
        used = mask[group].any(0).nonzero()
        first = int(used[0]) if cut_left else 0
        # One column of completion stays, for rows of which mask_truncated_completions leaves nothing.
        end = max(int(used[-1]) + 1, width - keep + 1)
        padding = width - end
        cut_ids = ids[group, first:end]
        cut_mask = mask[group, first:end]
        of_group = logps_of(model, cut_ids, cut_mask, keep - padding, compute_entropy=entropy)
        logps.append(F.pad(of_group[0], (0, padding)))
        if entropy:
            entropies.append(F.pad(of_group[1], (0, padding)))
    back = torch.cat(groups).argsort()
    of_tokens = torch.cat(logps)[back]
    of_entropy = torch.cat(entropies)[back] if entropy else None
    return of_tokens, of_entropy, None
