"""nanochat's architecture since 2026-03-14, which ``transformers`` has no class for.

It is ``transformers.NanoChatForCausalLM``, which is nanochat's architecture of 2025, with six
changes. With the token embedding normed as before, e[t], and x the residual stream:

- *Smear*: the embedding of a token gets a share of the one before,
  ``x0[t] = e[t] + smear_lambda · sigmoid(smear_gate · e[t, :24]) · e[t-1]``.
- *Residual scales*: the input of block i is ``residual_scale_i · x + first_scale_i · x0``.
- *Value embeddings*: in some blocks, attention's values get a table's row of the token, times a
  gate for each head, ``3 · sigmoid(value_gate · h[:12])``, with h the block's normed input.
- *Attention*: rotary base 100,000; queries and keys are multiplied by 1.2 after their norm.
- *Windows*: a token sees itself and the W tokens before it. In "long" blocks W is the model's
  ``sequence_len``, in "short" ones a quarter of it, rounded up to a multiple of 128. A window of
  ``transformers`` counts the token itself, so it is W + 1.
- *Backout*: before the final norm, ``backout_lambda`` times the output of block ``n_layer // 2``
  is subtracted.

The first token of a sequence has none before it. It is the token of position 0, the one after
padding, and the first of a row; so packs may be told by their position ids, and padding may be on
either side. While a text is generated, the cache keeps the ids of the tokens as its last layer:
the embedding that a smear needs is the one *before* it was smeared itself.

The formulas are those of ``nanochat/gpt.py`` (https://github.com/karpathy/nanochat), as of
2026-07-03; a checkpoint agrees to 1e-5 with nanochat's own outputs
(``tests/models/test_nanochat_2026.py``). Importing this module registers the classes with
``AutoConfig``, ``AutoModel`` and ``AutoModelForCausalLM``.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    NanoChatConfig,
    initialization,
)
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import (
    create_causal_mask,
    create_sliding_window_causal_mask,
    sliding_window_overlay,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.nanochat.modeling_nanochat import (
    NanoChatAttention,
    NanoChatDecoderLayer,
    NanoChatPreTrainedModel,
    NanoChatRMSNorm,
    NanoChatRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

SMEAR_CHANNELS, VALUE_CHANNELS = 24, 12  # channels that the gates read
VALUE_GATE = 3.0  # largest value of the gate of value embeddings
SHARPNESS = 1.2  # factor of queries, and of keys
SHORT, LONG = "sliding_attention", "full_attention"  # transformers' names of kinds of layers


class NanoChat2026Config(NanoChatConfig):
    """Configuration of a model of nanochat since 2026-03-14.

    What belongs to a block is listed by block, so that a model cut at a depth stays what it was.

    Attributes
    ----------
    layer_types : list of {"sliding_attention", "full_attention"}
        Of each block: a short window, or a long one of ``max_position_embeddings + 1`` tokens.
    sliding_window : int or None
        Tokens that one sees in short windows, itself included; None if all are long.
    value_embedding_layers : list of int
        Blocks with value embeddings, counted from 0.
    backout_layer : int
        The block whose output is subtracted at the end.
    """

    model_type = "nanochat_2026"
    default_theta = 100_000.0
    # No code comes with a model: TRL reads this of architectures that transformers does not have.
    auto_map: ClassVar[Any] = MappingProxyType({})

    layer_types: list[str] = None  # type: ignore[assignment] # filled in below, as are the others
    sliding_window: int | None = None
    value_embedding_layers: list[int] = None  # type: ignore[assignment]
    backout_layer: int = None  # type: ignore[assignment]

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what nanochat derives from the depth."""
        depth = self.num_hidden_layers
        if self.layer_types is None:
            self.layer_types = [LONG] * depth
        if self.value_embedding_layers is None:  # every second one, the last included
            self.value_embedding_layers = list(range(1 - depth % 2, depth, 2))
        if self.backout_layer is None:
            self.backout_layer = depth // 2
        super().__post_init__(**kwargs)


class NanoChat2026Attention(NanoChatAttention):
    """Causal attention within a window, with value embeddings in some blocks."""

    def __init__(self, config: NanoChat2026Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.scaling = SHARPNESS**2 / math.sqrt(self.head_dim)
        short = config.layer_types[layer_idx] == SHORT
        self.sliding_window = config.sliding_window if short else long_window(config)
        heads = int(config.num_key_value_heads or config.num_attention_heads)
        self.value_embeds: Any = None
        self.value_gate: Any = None
        if layer_idx in config.value_embedding_layers:
            self.value_embeds = nn.Embedding(config.vocab_size, heads * self.head_dim)
            self.value_gate = nn.Linear(VALUE_CHANNELS, heads, bias=False)

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        token_ids: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output of attention and, if computed, its weights.

        Parameters
        ----------
        hidden_states : Tensor of shape (batch, tokens, hidden)
            The block's normed input.
        token_ids : Tensor of shape (batch, tokens), int64
        position_embeddings : tuple of Tensor
            Cosines and sines of the rotary angles.
        attention_mask : Tensor, optional
            As :func:`transformers.masking_utils.create_causal_mask` makes it.
        past_key_values : Cache, optional
        **kwargs
            Passed to the implementation of attention.
        """
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads)
        if self.value_embeds is not None:
            gate = VALUE_GATE * _sigmoid(self.value_gate(hidden_states[..., :VALUE_CHANNELS]))
            value = value + gate[..., None] * self.value_embeds(token_ids).view(heads)
        value = value.transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        query, key = self.q_norm(query), self.k_norm(key)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(output.flatten(2)), weights


class NanoChat2026DecoderLayer(NanoChatDecoderLayer):
    """A block, whose input is mixed of the residual stream and the embedding."""

    def __init__(self, config: NanoChat2026Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = NanoChat2026Attention(config, layer_idx)
        self.residual_scale = nn.Parameter(torch.ones(1))
        self.first_scale = nn.Parameter(torch.zeros(1))

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, first: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Return the residual stream after the block.

        Parameters
        ----------
        hidden_states : Tensor of shape (batch, tokens, hidden)
            The residual stream.
        first : Tensor of shape (batch, tokens, hidden)
            The smeared embedding.
        **kwargs
            Those of attention.
        """
        mixed = self.residual_scale * hidden_states + self.first_scale * first
        return super().forward(mixed, **kwargs)


class NanoChat2026PreTrainedModel(NanoChatPreTrainedModel):
    """What the classes of models share."""

    config_class = NanoChat2026Config
    _no_split_modules = ["NanoChat2026DecoderLayer"]  # noqa: RUF012 - as in transformers
    _can_compile_fullgraph = False  # the cache grows
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": NanoChat2026DecoderLayer,
        "attentions": NanoChat2026Attention,
    }

    def _init_weights(self, module: nn.Module) -> None:
        """Start with the architecture of 2025, as far as this one can be it."""
        super()._init_weights(module)
        if isinstance(module, NanoChat2026DecoderLayer):
            initialization.ones_(module.residual_scale)
            initialization.zeros_(module.first_scale)
        elif isinstance(module, NanoChat2026Model):
            initialization.zeros_(module.smear_lambda)
            initialization.zeros_(module.backout_lambda)


class NanoChat2026Model(NanoChat2026PreTrainedModel):
    """The transformer without language head."""

    def __init__(self, config: NanoChat2026Config) -> None:
        super().__init__(config)
        # No padding index: nanochat pads with the end of a turn, whose embedding is to be trained.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.smear_gate = nn.Linear(SMEAR_CHANNELS, 1, bias=False)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.layers = nn.ModuleList(
            NanoChat2026DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.backout_lambda = nn.Parameter(torch.zeros(1))
        self.norm = NanoChatRMSNorm(eps=config.rms_norm_eps)
        self.rotary_emb = NanoChatRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the hidden states after the final norm.

        Parameters
        ----------
        input_ids : Tensor of shape (batch, tokens), int64
            Token ids; embeddings will not do, as value embeddings are looked up.
        attention_mask : Tensor of shape (batch, past and present tokens), optional
            1 for tokens, 0 for padding.
        position_ids : Tensor of shape (batch, tokens), int64, optional
            In packs, 0 at the start of each sequence.
        past_key_values : Cache, optional
            Of the tokens before; gets those of these tokens.
        inputs_embeds : None
            Other models of ``transformers`` have it.
        use_cache : bool, optional
            Whether to make a cache where none is given.
        **kwargs
            Passed to the implementation of attention.

        Raises
        ------
        ValueError
            If there are no token ids, or the cache is not one of this model that grows.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("nanochat since 2026-03-14 reads token ids; inputs_embeds will not do")
        if isinstance(attention_mask, dict):
            raise ValueError("nanochat since 2026-03-14 has no static cache; use the default one")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(seen, seen + input_ids.shape[1], device=input_ids.device)
            position_ids = position_ids[None]
        before = self._ids_before(past_key_values) if seen else None
        has_before = _follows(position_ids, attention_mask)
        first = self._smeared(input_ids, before, has_before)
        masks = self._masks(first, attention_mask, past_key_values, position_ids, seen)
        angles = self.rotary_emb(first, position_ids=position_ids)
        hidden, backed_out = first, None
        for number, layer in enumerate(self.layers):
            hidden = layer(
                hidden,
                first,
                attention_mask=masks[self.config.layer_types[number]],
                token_ids=input_ids,
                position_ids=position_ids,
                position_embeddings=angles,
                past_key_values=past_key_values,
                **kwargs,
            )
            if number == self.config.backout_layer:
                backed_out = hidden
        if backed_out is not None:  # a model that is cut below has none
            hidden = hidden - self.backout_lambda * backed_out
        if past_key_values is not None:
            self._keep_ids(past_key_values, input_ids)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden), past_key_values=past_key_values
        )

    def _smeared(
        self, ids: torch.Tensor, before: torch.Tensor | None, has_before: torch.Tensor
    ) -> torch.Tensor:
        """Return the normed embeddings, each with its share of the one before.

        Parameters
        ----------
        ids : Tensor of shape (batch, tokens), int64
        before : Tensor of shape (batch, 1), int64, optional
            The tokens before the first of these.
        has_before : Tensor of shape (batch or 1, tokens), bool
            Whether a token follows one of its own sequence.
        """
        normed = self.norm(self.embed_tokens(ids))
        shifted = pad(normed[:, :-1], (0, 0, 1, 0))
        if before is not None:
            shifted = torch.cat([self.norm(self.embed_tokens(before)), shifted[:, 1:]], dim=1)
        gate = self.smear_lambda * _sigmoid(self.smear_gate(normed[..., :SMEAR_CHANNELS]))
        return normed + gate * has_before[..., None] * shifted

    def _masks(
        self,
        embeddings: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor,
        seen: int,
    ) -> dict[str, Any]:
        """Return the masks of attention by kind of layer."""
        common: dict[str, Any] = {
            "config": self.config,
            "inputs_embeds": embeddings,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        window = long_window(self.config)
        cuts = seen + embeddings.shape[1] > window
        overlay = sliding_window_overlay(window) if cuts else None
        masks = {LONG: create_causal_mask(**common, and_mask_function=overlay)}
        if SHORT in self.config.layer_types:
            masks[SHORT] = create_sliding_window_causal_mask(**common)
        return masks

    def _ids_before(self, cache: Any) -> torch.Tensor:
        """Return the ids of the last tokens in the cache, of shape (batch, 1)."""
        if len(cache.layers) <= len(self.layers):
            raise ValueError("the cache lacks the token ids that nanochat's smear needs")
        ids: torch.Tensor = cache.layers[len(self.layers)].keys
        return ids[:, 0, -1:, 0]

    def _keep_ids(self, cache: Any, ids: torch.Tensor) -> None:
        """Append token ids to the last layer of a cache, as keys of one head and one channel.

        As a layer of the cache they are repeated, reordered and cropped with the others.
        """
        if len(cache.layers) == len(self.layers):
            cache.layers.append(DynamicLayer())
        as_keys = ids[:, None, :, None]
        cache.layers[len(self.layers)].update(as_keys, as_keys)


class NanoChat2026ForCausalLM(NanoChat2026PreTrainedModel, GenerationMixin):
    """The transformer with its language head, whose logits are softly capped at ±15."""

    def __init__(self, config: NanoChat2026Config) -> None:
        super().__init__(config)
        self.model = NanoChat2026Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits, and the loss where there are labels.

        Parameters
        ----------
        input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache
            See :meth:`NanoChat2026Model.forward`.
        labels : Tensor of shape (batch, tokens), int64, optional
            Tokens to predict, not shifted; -100 is left out.
        logits_to_keep : int or Tensor
            Number of last positions to compute logits of, 0 for all; or their indices.
        **kwargs
            Passed to the implementation of attention and to the loss.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept]).float()
        cap: Any = self.config.final_logit_softcapping
        logits = cap * torch.tanh(logits / cap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def long_window(config: Any) -> int:
    """Return the tokens that one sees in blocks with a long window, itself included."""
    return int(config.max_position_embeddings) + 1


def _sigmoid(states: torch.Tensor) -> torch.Tensor:
    """Return the logistic function, by way of the hyperbolic tangent.

    On a CPU the last bit of ``torch.sigmoid`` depends on where in memory an element is, so that a
    text in a pack would get other bytes than alone; that of ``torch.tanh`` does not.
    """
    return 0.5 + 0.5 * torch.tanh(0.5 * states)


def _follows(position_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Return whether each token follows one of its own sequence, of shape (batch or 1, tokens)."""
    follows = position_ids > 0
    if attention_mask is not None and attention_mask.dim() == 2:
        tokens = position_ids.shape[1]
        real = pad(attention_mask.bool(), (1, 0))  # nothing is before a row
        follows = follows & real[:, -tokens - 1 : -1]
    return follows


AutoConfig.register("nanochat_2026", NanoChat2026Config)
AutoModel.register(NanoChat2026Config, NanoChat2026Model)
AutoModelForCausalLM.register(NanoChat2026Config, NanoChat2026ForCausalLM)
