"""Running many sequences through a transformer as one long row, without padding.

The sequences of a pack lie end to end. Embeddings, linear layers and norms see one row of tokens;
only attention must not look across, so it is computed by sequence, all those of one length at once,
without a mask. Nothing is spent on padding, and matrix products are large.

On a CPU in float32 the linear layers run on oneDNN with weights laid out for it beforehand, a tenth
faster than the default BLAS here (``benchmarks/embeddings.py``). Its products, and those of the
BLAS, gave a row the same bytes in packs of any size from 4 tokens up, at any thread count tried
(``tests/test_encoders.py`` repeats the trial); packs are filled up to a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear, pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "isodense_packed"
UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # of attention, under transformers' names
MULTIPLE = 16  # packs are filled up to so many tokens, heads to as many floats
ROWS_HINT = 1024  # tokens that oneDNN lays weights out for; always the same, as bytes depend on it


class Segment(NamedTuple):
    """Sequences of one length in a pack.

    Attributes
    ----------
    start : int
        Their first token.
    sequences : int
        How many they are.
    length : int
        Tokens of each.
    """

    start: int
    sequences: int
    length: int

    @property
    def stop(self) -> int:
        """The token after their last."""
        return self.start + self.sequences * self.length


def segments(lengths: Sequence[int]) -> list[Segment]:
    """Return the runs of equal length in a pack.

    Examples
    --------
    >>> segments([5, 3, 3])
    [Segment(start=0, sequences=1, length=5), Segment(start=5, sequences=2, length=3)]
    """
    found: list[Segment] = []
    for length in lengths:
        if found and found[-1].length == length:
            found[-1] = found[-1]._replace(sequences=found[-1].sequences + 1)
        else:
            found.append(Segment(found[-1].stop if found else 0, 1, length))
    return found


def run(model: Any, rows: Sequence[Sequence[int]], first_position: int, longest: int) -> Any:
    """Run a pack and return what the model returns, of shape (1, tokens, …).

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Its attention set to `NAME`.
    rows : sequence of token ids
        Those of equal length side by side.
    first_position : int
        Of a sequence's first token.
    longest : int
        Tokens of the longest sequence of all packs, which decides whether a window matters.
    """
    lengths = [len(row) for row in rows]
    fill = -sum(lengths) % MULTIPLE
    tokens = torch.tensor([token for row in rows for token in row] + [0] * fill)
    lengths += [fill] if fill else []
    positions = torch.cat([torch.arange(length) for length in lengths]) + first_position
    return model(
        input_ids=tokens[None].to(model.device),
        position_ids=positions[None].to(model.device),
        segments=segments(lengths),
        longest=longest,
    )


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: Any,
    *,
    segments: list[Segment],
    longest: int,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for ``transformers``: heads of shape (1, heads, tokens, size)."""
    special = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if special or (sliding_window is not None and sliding_window < longest):
        raise NotImplementedError(f"packed attention with {special or 'a sliding window'}")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    query, key, value = _aligned(query), _aligned(key), _aligned(value)
    for segment in segments:
        shape = (segment.sequences, segment.length)
        q, k, v = (
            heads[0, :, segment.start : segment.stop].unflatten(1, shape).transpose(0, 1)
            for heads in (query, key, value)
        )
        attended = scaled_dot_product_attention(
            q, k, v, scale=scaling, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
        )
        attended = attended.transpose(1, 2)[..., : out.shape[3]]
        out[0, segment.start : segment.stop].unflatten(0, shape).copy_(attended)
    return out, None


def _aligned(heads: torch.Tensor) -> torch.Tensor:
    """Fill the heads up with zeros until each token's begin on a cache line.

    Otherwise a CPU's small products take other paths, and round otherwise, by a sequence's place.
    """
    return pad(heads, (0, -heads.shape[3] % MULTIPLE)) if heads.shape[3] % MULTIPLE else heads


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    return None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _no_mask)


@contextmanager
def stock_attention(model: Any) -> Iterator[None]:
    """Give a packed model its own attention back for a while."""
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)


class _Linear(torch.nn.Module):
    """A linear layer on oneDNN."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS_HINT)
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")


def product(rows: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
    """Return ``rows @ weight.T + bias``, a row's bytes independent of how many there are."""
    filled = pad(rows, (0, 0, 0, -len(rows) % MULTIPLE))
    return linear(filled, weight, bias)[: len(rows)]


def prepack(model: torch.nn.Module) -> None:
    """Replace the linear layers of a float32 model on the CPU by oneDNN's, where torch has them."""
    there = torch.backends.mkldnn.is_available()
    if not there or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for name, child in list(model.named_children()):
        if type(child) is torch.nn.Linear:
            if child.weight.device.type == "cpu" and child.weight.dtype == torch.float32:
                setattr(model, name, _Linear(child))
        else:
            prepack(child)
