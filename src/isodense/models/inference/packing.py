"""Sequence packing: many sequences run through a transformer as one row, without padding.

The sequences of a pack are concatenated. Embeddings, linear layers and norms see one row of tokens;
only attention must not cross sequences, so it is computed per sequence, all those of one length at
once, without a mask. No computation is spent on padding, and matrix products are large.

A sequence may continue an earlier one of the pack, as several answers continue one prompt: its
tokens see that one's and their own. So what they share is computed once.

On a CPU in float32 the linear layers run on oneDNN with prepacked weights, see `prepacked.py`.
Products of oneDNN and of BLAS gave a row the same bytes in packs of any size from 4 tokens up, at
any thread count tried (``tests/embeddings/test_encoder.py`` repeats the trial); packs are padded to
a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear, pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from isodense.models.inference.backbone import has_window, made_up
from isodense.models.inference.prepacked import prepack

NAME = "isodense_packed"
UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # arguments of attention in transformers
MULTIPLE = 16  # packs are padded to a multiple of so many tokens, heads to as many floats


class Segment(NamedTuple):
    """Sequences of one length in a pack.

    Attributes
    ----------
    start : int
        Position of the first token in the pack.
    sequences : int
        Number of sequences.
    length : int
        Tokens per sequence.
    before : int
        Position of the first token of the sequence that these continue.
    seen : int
        Tokens of the sequence that these continue; 0 if they continue none.
    """

    start: int
    sequences: int
    length: int
    before: int = 0
    seen: int = 0

    @property
    def stop(self) -> int:
        """Position after the last token."""
        return self.start + self.sequences * self.length


def segments(lengths: Sequence[int], owners: Sequence[int | None] = ()) -> list[Segment]:
    """Group adjacent sequences of equal length that continue the same sequence, or none.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each sequence of the pack, in order.
    owners : sequence of int or None
        Number of the earlier sequence that each continues, None for those that continue none; by
        default none does. A sequence that is continued continues none itself.

    Examples
    --------
    >>> segments([5, 3, 3])
    [Segment(start=0, sequences=1, length=5, before=0, seen=0), \
Segment(start=5, sequences=2, length=3, before=0, seen=0)]
    """
    starts = [0, *accumulate(lengths)]
    found: list[Segment] = []
    for start, length, owner in zip(starts, lengths, owners or [None] * len(lengths), strict=False):
        before, seen = (0, 0) if owner is None else (starts[owner], lengths[owner])
        if found and found[-1][2:] == (length, before, seen):
            found[-1] = found[-1]._replace(sequences=found[-1].sequences + 1)
        else:
            found.append(Segment(start, 1, length, before, seen))
    return found


def run(
    model: Any,
    rows: Sequence[Sequence[int]],
    first_position: int,
    longest: int,
    owners: Sequence[int | None] = (),
) -> Any:
    """Run a pack through a model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model, with the attention implementation `NAME`.
    rows : sequence of sequence of int
        Token ids of each sequence; sequences of equal length are adjacent.
    first_position : int
        Position id of the first token of a sequence.
    longest : int
        Tokens of the longest sequence of all packs, with the one that it continues, which decides
        whether a window matters.
    owners : sequence of int or None
        See :func:`segments`.

    Returns
    -------
    transformers.utils.ModelOutput
        The model's output, with tensors of shape (1, tokens, …).

    Raises
    ------
    NotImplementedError
        If the model's attention has an argument that packs do not support.
    """
    lengths = [len(row) for row in rows]
    fill = -sum(lengths) % MULTIPLE
    tokens = torch.tensor([token for row in rows for token in row] + [0] * fill)
    parts = segments([*lengths, fill] if fill else lengths, [*owners, None] if owners else ())
    positions = torch.cat(
        [torch.arange(part.length).repeat(part.sequences) + part.seen for part in parts]
    )
    return model(
        input_ids=tokens[None].to(model.device),
        position_ids=(positions + first_position)[None].to(model.device),
        segments=parts,
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
    """Attention in the interface of ``transformers``: heads of shape (1, heads, tokens, size)."""
    special = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if special or (sliding_window is not None and sliding_window < longest):
        raise NotImplementedError(f"packed attention with {special or 'a sliding window'}")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    query, key, value = _aligned(query), _aligned(key), _aligned(value)
    for segment in segments:
        q, k, v = (_of_segment(heads, segment) for heads in (query, key, value))
        mask = None
        if segment.seen:
            if not causal:
                raise NotImplementedError("packed attention both ways over a continued sequence")
            k, v = (_continuing(heads, own, segment) for heads, own in ((key, k), (value, v)))
            q = pad(q, (0, 0, 0, -segment.length % MULTIPLE))
            mask = _seen(q.shape[2], segment).to(q.device)
        attended = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            scale=scaling,
            is_causal=causal and mask is None,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        attended = attended[:, :, : segment.length, : out.shape[3]].transpose(1, 2)
        rows = out[0, segment.start : segment.stop]
        rows.unflatten(0, (segment.sequences, segment.length)).copy_(attended)
    return out, None


def _of_segment(heads: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Return the heads of a segment's tokens, of shape (sequences, heads, length, size)."""
    shape = (segment.sequences, segment.length)
    return heads[0, :, segment.start : segment.stop].unflatten(1, shape).transpose(0, 1)


def _continuing(heads: torch.Tensor, own: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Return the heads of the tokens that a segment's sequences continue, before their own."""
    seen = heads[:, :, segment.before : segment.before + segment.seen]
    return torch.cat([seen.expand(segment.sequences, -1, -1, -1), own], dim=2)


def _seen(queries: int, segment: Segment) -> torch.Tensor:
    """Return which tokens each query sees: all that are continued, the own ones up to itself.

    There are more queries than tokens: a multiple of 16, by which each thread's buffers are
    aligned. Otherwise the bytes of sequences of up to three tokens depended on the threads.
    """
    keys = segment.seen + segment.length
    return torch.ones(segment.seen + queries, keys, dtype=torch.bool).tril()[segment.seen :]


def _aligned(heads: torch.Tensor) -> torch.Tensor:
    """Pad the heads with zeros so that those of each token are aligned to a cache line.

    Otherwise small matrix products on a CPU use other kernels, which round differently, depending
    on where a sequence is in the pack.
    """
    return pad(heads, (0, -heads.shape[3] % MULTIPLE)) if heads.shape[3] % MULTIPLE else heads


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    return None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _no_mask)


@contextmanager
def stock_attention(model: Any) -> Iterator[None]:
    """Use the model's default attention inside the block, not that of packs."""
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)


def product(rows: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
    """Return ``rows @ weight.T + bias``; the bytes of a row do not depend on the number of rows.

    Parameters
    ----------
    rows : Tensor of shape (n, in)
        Inputs.
    weight : Tensor of shape (out, in)
        Weight.
    bias : Tensor of shape (out,), optional
        Bias.

    Returns
    -------
    Tensor of shape (n, out)
    """
    padded = pad(rows, (0, 0, 0, -len(rows) % MULTIPLE))
    return linear(padded, weight, bias)[: len(rows)]


def first_position(model: Any) -> int:
    """Return the position id of a sequence's first token; RoBERTa starts after its padding id."""
    padding = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def not_packable(model: Any, max_tokens: int) -> str | None:
    """Return why a model's texts cannot run in packs; None if its attention may be replaced.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.
    max_tokens : int
        Tokens of the longest sequence.
    """
    if not model._supports_attention_backend:
        return "transformers has no way to replace the attention of this architecture"
    if has_window(model.config, max_tokens):
        return f"its attention has a window shorter than max_tokens, {max_tokens}"
    return None


@torch.inference_mode()
def pack(model: Any, max_tokens: int, limit: float) -> str | None:
    """Set a model up for packs; return None if its hidden states stay the same, else why not.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model; it is changed, also where it does not work.
    max_tokens : int
        Tokens of the longest sequence.
    limit : float
        Least cosine of the hidden states of a token, packed and alone.
    """
    lengths = [min(max_tokens, 64), 7, 7, 3]
    rows = made_up(model.config, lengths)
    device = model.device
    alone = [model(input_ids=torch.tensor([row]).to(device)).last_hidden_state[0] for row in rows]
    prepack(model)
    try:
        model.set_attn_implementation(NAME)
        states = run(model, rows, first_position(model), max_tokens).last_hidden_state[0]
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        return f"in a trial, packs failed with {type(error).__name__}: {error}".splitlines()[0]
    cosine = torch.cosine_similarity(states[: sum(lengths)].float(), torch.cat(alone).float())
    return None if cosine.min() >= limit else "in a trial, packs gave other states than texts alone"
