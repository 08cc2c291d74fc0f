"""Tiny checkpoints with random weights of the architectures that people train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from isodense.models.inference import nanochat_2026 as nanochat_2026  # registers its classes
from isodense.pipeline.artifact import write_manifest
from tests.tiny import tokenizer

SIZES: dict[str, Any] = {  # by the name that a config has for it
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
LATENT = {
    "head_dim": 4,  # of attention with latent keys and values
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
STATE = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
MAMBA_2 = {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "expand": 2}
PATCHES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
HYBRID = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]

# Fields of the config beside `SIZES`, by model type, in the order of the table.
DENSE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {},
    "smollm3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
    "gemma3n_text": {
        "sliding_window": 8,
        "laurel_rank": 4,
        "hidden_size_per_layer_input": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [64] * 4,
    },
    "gemma4_text": {
        "sliding_window": 8,
        "hidden_size_per_layer_input": 4,
        "num_kv_shared_layers": 0,
        "head_dim": 8,
        "global_head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "phi": {},
    "phi3": {"pad_token_id": 2},
    "olmo2": {},
    "olmo3": {"sliding_window": 8},
    "granite": {},
    "cohere": {},
    "cohere2": {"sliding_window": 8},
    "glm4": {},
    "exaone4": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "ernie4_5": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "seed_oss": {},
    "nemotron": {},
    "starcoder2": {},
    "stablelm": {},
    "gpt2": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 4},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {},
    "falcon": {},
    "mpt": {"n_heads": 4, "n_layers": 4, "max_seq_len": 256},
    "nanochat": {},
    "nanochat_2026": {
        "sliding_window": 8,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    },
}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
    "olmoe": {},
    "gpt_oss": {"sliding_window": 8},
    "granitemoe": {},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "glm4_moe": {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "phimoe": {},
    "dots1": {"n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2},
    "llama4_text": {"attention_chunk_size": 128, "intermediate_size_mlp": 64},
}
LINEAR: dict[str, dict[str, Any]] = {
    "qwen3_next": {"layer_types": HYBRID},
    "qwen3_5_text": {"layer_types": HYBRID},
    "olmo_hybrid": {"layer_types": HYBRID},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"], "block_dim": 32},
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "granitemoehybrid": {
        **STATE,
        "layer_types": ["mamba", "mamba", "attention", "mamba"],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
    },
    "bamba": {**STATE, "attn_layer_indices": [2]},
    "jamba": {
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "nemotron_h": {
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
    },
    "zamba2": {
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"],
        "num_mem_blocks": 1,
    },
    "minimax": {"layer_types": ["linear_attention", "full_attention"] * 2, "block_size": 16},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 64, "num_key_value_heads": 1},
    "mamba": {"state_size": 8},
    "falcon_mamba": {"state_size": 8},
    "mamba2": MAMBA_2,
    "rwkv": {"attention_hidden_size": 32, "context_length": 256},
    "xlstm": {
        "num_heads": 4,
        "chunkwise_kernel": "chunkwise--native_autograd",
        "mode": "inference",
    },
}
SEEING: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2},
    },
    "qwen2_5_vl": {
        "text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        "vision_config": QWEN_VISION,
    },
    "qwen3_vl": {
        "text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        "vision_config": QWEN_VISION,
    },
    "qwen3_5": {"text_config": {"layer_types": HYBRID}, "vision_config": QWEN_VISION},
    "gemma3": {
        "text_config": {"sliding_window": 8},
        "vision_config": PATCHES,
        "mm_tokens_per_image": 4,
    },
    "llava": {
        "text_config": {"model_type": "llama"},
        "vision_config": {**PATCHES, "model_type": "clip_vision_model"},
    },
    "mllama": {
        "text_config": {"cross_attention_layers": [1]},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 32,
        },
    },
    "idefics3": {"text_config": {"model_type": "llama"}, "vision_config": PATCHES},
    "smolvlm": {"text_config": {"model_type": "llama"}, "vision_config": PATCHES},
    "mistral3": {
        "text_config": {"model_type": "mistral"},
        "vision_config": {**PATCHES, "model_type": "pixtral", "head_dim": 8},
    },
    "internvl": {
        "text_config": {"model_type": "qwen2"},
        "vision_config": {**PATCHES, "image_size": [16, 16], "patch_size": [8, 8]},
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "t5": {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    "bart": {},
}
GROUPS = {
    "dense": DENSE,
    "experts": EXPERTS,
    "linear": LINEAR,
    "seeing": SEEING,
    "refused": REFUSED,
}
ALL = {name: fields for group in GROUPS.values() for name, fields in group.items()}


def small(kind: str, fields: dict[str, Any]) -> Any:
    """Return a tiny config of a model type."""
    made = tokenizer()
    words = len(made) + 8
    ids = {
        "vocab_size": words,
        "bos_token_id": made.bos_token_id,
        "eos_token_id": made.eos_token_id,
        "pad_token_id": made.pad_token_id,
    }
    text = fields.get("text_config")
    if text is None:
        defaults = AutoConfig.for_model(kind)
        known = {name: value for name, value in SIZES.items() if name in vars(defaults)}
        return AutoConfig.for_model(kind, **{**known, **ids, **fields})
    defaults = AutoConfig.for_model(kind).get_text_config()
    inner = text.get("model_type")
    if inner is not None:
        defaults = AutoConfig.for_model(inner)
    known = {name: value for name, value in SIZES.items() if hasattr(defaults, name)}
    places = (
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
        "image_token_index",
    )
    tokens = {name: len(made) + number % 4 for number, name in enumerate(places)}
    tokens |= {name: made.pad_token_id for name in ("pad_token_id",)}
    return AutoConfig.for_model(
        kind, **{**tokens, **fields, "text_config": {**known, **ids, **text}}
    )


def checkpoint(folder: Path, kind: str) -> Path:
    """Save a tiny policy of a model type, with its tokenizer and the manifest of the stage."""
    config = small(kind, ALL[kind])
    folder.mkdir(parents=True)
    tokenizer().save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind in REFUSED:
            model = transformers.AutoModelForSeq2SeqLM.from_config(config)
        elif kind in SEEING:
            model = transformers.AutoModelForImageTextToText.from_config(config)
        else:
            model = AutoModelForCausalLM.from_config(config)
        for weight in model.parameters():  # larger than usual, so that outputs differ clearly
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.1)
            elif kind == "nanochat_2026":  # whose scales start where they change nothing
                torch.nn.init.normal_(weight, mean=0.7, std=0.2)
        model.save_pretrained(folder)
    write_manifest(folder, "models", role="policy")
    return folder
