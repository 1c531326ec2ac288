"""What the families are tested with: for each case transformers' family (see tests/builders.py) and its config.

docs/models.md lists these cases as how an architecture is verified.
"""

from __future__ import annotations

from typing import Any

ALTERNATE = ["sliding_attention", "full_attention"]
Case = tuple[str, dict[str, Any]]
CASES: dict[str, Case] = {
    "llama": ("llama", {}),
    "llama-mha-biases": ("llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 24, "num_key_value_heads": 1}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-gelu": ("llama", {"hidden_act": "gelu"}),
    "llama-ignores-window": ("llama", {"sliding_window": 4}),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral", {"sliding_window": 16}),
    "mistral-head-dim": ("mistral", {"head_dim": 32, "sliding_window": 7}),
    "ministral-layers": ("ministral", {"sliding_window": 8, "layer_types": ALTERNATE[::-1]}),
    "qwen2": ("qwen2", {}),
    "qwen2-unused-window": ("qwen2", {"sliding_window": 4, "use_sliding_window": False}),
    "qwen2-window-after": ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-biases": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-window": ("qwen3", {"sliding_window": 5, "use_sliding_window": True, "layer_types": ALTERNATE}),
    "seed-oss": ("seed_oss", {"attention_bias": True, "attention_out_bias": False}),
    "gemma": ("gemma", {"num_key_value_heads": 1, "head_dim": 32}),
    "gemma2": (
        "gemma2",
        {
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "num_hidden_layers": 3,
            "attn_logit_softcapping": 1.0,  # so low that they matter
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma2-uncapped": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True, "sliding_window": 8},
    ),
    "gemma3": (
        "gemma3",
        {"sliding_window": 8, "query_pre_attn_scalar": 24, "num_hidden_layers": 4, "layer_types": ALTERNATE * 2},
    ),
    "gemma3-scaled": (
        "gemma3",
        {
            "sliding_window": 8,
            "num_hidden_layers": 7,
            "final_logit_softcapping": 2.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
    "gemma3_whole": (
        "gemma3_whole",
        {"sliding_window": 8, "num_hidden_layers": 4, "layer_types": ALTERNATE * 2},
    ),
    "qwen2_vl_whole": (
        "qwen2_vl_whole",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
    ),
    "qwen2_5_vl_whole": (
        "qwen2_5_vl_whole",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
    ),
    "qwen3_vl_whole": (
        "qwen3_vl_whole",
        {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]}},
    ),
    "mistral3_whole": ("mistral3_whole", {}),
    "phi": ("phi", {}),
    "phi-mha": ("phi", {"num_key_value_heads": 4, "hidden_act": "gelu", "partial_rotary_factor": 0.25}),
    "stablelm": ("stablelm", {}),
    "stablelm-biases": ("stablelm", {"use_qkv_bias": True, "tie_word_embeddings": True}),
    "phi-qk-norm": ("phi", {"qk_layernorm": True, "num_key_value_heads": 4}),
    "stablelm-12b": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "persimmon": ("persimmon", {}),
    "persimmon-plain": ("persimmon", {"qk_layernorm": False}),
    "biogpt": ("biogpt", {}),
    "xglm": ("xglm", {"ffn_dim": 96, "scale_embedding": False, "tie_word_embeddings": True}),
    "gpt_neo": ("gpt_neo", {"window_size": 8, "attention_types": [[["global", "local"], 1]], "intermediate_size": 80}),
    "granite_swa": (
        "granite_swa",
        {"sliding_window": 8, "layer_rope_theta": [0, 1e3, 1e4], "num_hidden_layers": 3, "attention_multiplier": 0.5},
    ),
    "phi3": ("phi3", {}),
    "phi3-window": ("phi3", {"sliding_window": 16, "num_key_value_heads": 4}),
    "phi3-longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0],
            },
        },
    ),
    "glm": ("glm", {}),
    "glm4": ("glm4", {"attention_bias": False}),
    "olmo2": ("olmo2", {"num_key_value_heads": 1}),
    "olmo3": ("olmo3", {"sliding_window": 8, "layer_types": ALTERNATE}),
    "olmo3-yarn": (
        "olmo3",
        {
            "sliding_window": 8,
            "num_hidden_layers": 4,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                    "rope_theta": 5e5,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
    "smollm3-window": (
        "smollm3",
        {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 8, "mlp_bias": True},
    ),
    "starcoder2": ("starcoder2", {"sliding_window": 8}),
    "starcoder2-unbiased": ("starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
    "gpt2": ("gpt2", {}),
    "gpt2-inner": ("gpt2", {"n_inner": 80, "activation_function": "gelu", "scale_attn_weights": False}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gpt_neox-serial": ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 0.25}),
    "opt": ("opt", {"ffn_dim": 96}),
    "opt-unbiased": ("opt", {"ffn_dim": 96, "enable_bias": False, "activation_function": "gelu"}),
    "falcon": ("falcon", {"ffn_hidden_size": 96}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon-11b": (
        "falcon",
        {
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": True,
        },
    ),
    "falcon-serial": ("falcon", {"parallel_attn": False, "multi_query": False}),
    "falcon-rw": (
        "falcon",
        {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True, "num_attention_heads": 8},
    ),
    "bloom": ("bloom", {"tie_word_embeddings": True}),
    "bloom-heads": ("bloom", {"hidden_size": 72, "n_head": 6, "num_attention_heads": 6}),
    "mpt": ("mpt", {"attn_config": {"clip_qkv": 0.7}, "max_seq_len": 512}),
    "mpt-heads": (
        "mpt",
        {"d_model": 72, "hidden_size": 72, "num_attention_heads": 6, "attn_config": {"softmax_scale": 0.4}},
    ),
    "gptj": ("gptj", {"rotary_dim": 8}),
    "codegen": ("codegen", {"rotary_dim": 4, "num_attention_heads": 8, "n_inner": 80}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_bigcode-mha": ("gpt_bigcode", {"multi_query": False, "scale_attn_weights": False, "n_inner": 80}),
    "olmo": ("olmo", {"clip_qkv": 0.7, "num_key_value_heads": 1}),
    "arcee": ("arcee", {}),
    "jais2": ("jais2", {}),
    "nemotron": ("nemotron", {}),
    "apertus": ("apertus", {"num_hidden_layers": 2}),
    "helium": ("helium", {"mlp_bias": True}),
    "cwm": ("cwm", {"bos_token_id": 0, "sliding_window": 8, "num_hidden_layers": 5}),
    "hyperclovax": (
        "hyperclovax",
        {"embedding_multiplier": 2.0, "residual_multiplier": 0.4, "attention_multiplier": 0.5, "logits_scaling": 0.3},
    ),
    "hyperclovax-pre": ("hyperclovax", {"use_post_norm": False}),
    "vaultgemma": (
        "vaultgemma",
        {
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 1.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "ministral3": (
        "ministral3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.3,
            }
        },
    ),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"head_dim": 24}),
    "hunyuan_v1_dense-alpha": (
        "hunyuan_v1_dense",
        {
            "attention_bias": True,
            "rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 1e4},
        },
    ),
    "nanochat": ("nanochat", {"final_logit_softcapping": 2.0}),
    "cohere": ("cohere", {"logit_scale": 0.3}),
    "cohere-qk-norm": ("cohere", {"use_qk_norm": True, "attention_bias": True, "tie_word_embeddings": False}),
    "cohere2": ("cohere2", {"sliding_window": 8, "num_hidden_layers": 4}),
    "cohere2-layers": ("cohere2", {"sliding_window": 5, "layer_types": ALTERNATE}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5-biases": ("ernie4_5", {"use_bias": True}),
    "exaone4": ("exaone4", {"sliding_window": 8, "num_hidden_layers": 4}),
    "exaone4-full": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
}
# A latent of 32 values and 8 that positions turn; only layers without experts.
LATENT = {
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "q_lora_rank": 24,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
}
MSCALED = {
    "rope_type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 16,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "rope_theta": 1e4,
}
CASES |= {
    "deepseek_v2-dense": ("deepseek_v2", {**LATENT, "head_dim": 8}),
    "deepseek_v2-lite-dense": (
        "deepseek_v2",
        {**LATENT, "head_dim": 8, "q_lora_rank": None, "rope_parameters": MSCALED},
    ),
    "deepseek_v3-dense": ("deepseek_v3", {**LATENT, "head_dim": 8, "rope_parameters": {**MSCALED, "mscale": 1.0}}),
    "deepseek_v3-halves-dense": (
        "deepseek_v3",
        {**LATENT, "head_dim": 8, "rope_interleave": False, "attention_bias": True},
    ),
}
# Eight experts, three for a token; where the keys are others, in the cases themselves.
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 3}
ROUTED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
}
GROUPS = {"n_group": 4, "topk_group": 2}
CASES |= {
    "mixtral": ("mixtral", LOCAL),
    "mixtral-window": ("mixtral", {**LOCAL, "sliding_window": 16, "hidden_act": "gelu"}),
    "qwen2_moe": (
        "qwen2_moe",
        {**EXPERTS, "shared_expert_intermediate_size": 56, "num_hidden_layers": 3, "decoder_sparse_step": 2},
    ),
    "qwen2_moe-mlp-only": (
        "qwen2_moe",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 56,
            "mlp_only_layers": [0],
            "norm_topk_prob": True,
            "qkv_bias": False,
        },
    ),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "head_dim": 32, "norm_topk_prob": True}),
    "qwen3_moe-window": ("qwen3_moe", {**EXPERTS, "use_sliding_window": True, "sliding_window": 8}),
    "olmoe": ("olmoe", {"num_experts": 8, "num_experts_per_tok": 3}),
    "olmoe-normed": ("olmoe", {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True, "clip_qkv": 0.7}),
    "gpt_oss": (
        "gpt_oss",
        {
            **LOCAL,
            "sliding_window": 8,
            "swiglu_limit": 0.3,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "truncate": False,
                "original_max_position_embeddings": 128,
                "rope_theta": 1.5e5,
            },
        },
    ),
    "gpt_oss-plain": (
        "gpt_oss",
        {
            **LOCAL,
            "attention_bias": False,
            "layer_types": ALTERNATE[::-1],
            "sliding_window": 5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "minimax_m2": (
        "minimax_m2",
        {
            **LOCAL,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
    ),
    "phimoe": (
        "phimoe",
        {"num_local_experts": 8, "attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.2},
    ),
    "phimoe-longrope": (
        "phimoe",
        {
            "num_local_experts": 8,
            "router_jitter_noise": 0.0,
            "sliding_window": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_mscale": 1.2,
                "long_mscale": 1.2,
                "original_max_position_embeddings": 256,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
                "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
            },
        },
    ),
    "granitemoe": (
        "granitemoe",
        {
            **LOCAL,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "glm4_moe": ("glm4_moe", {**ROUTED, **GROUPS, "use_qk_norm": True}),
    "glm4_moe-biases": ("glm4_moe", {**ROUTED, "attention_bias": True, "norm_topk_prob": False}),
    "dots1": ("dots1", {**ROUTED, "sliding_window": 8, "max_window_layers": 1}),
    "ernie4_5_moe": ("ernie4_5_moe", {"moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 40}),
    "ernie4_5_moe-some": (
        "ernie4_5_moe",
        {
            "moe_num_experts": 8,
            "moe_k": 3,
            "moe_intermediate_size": 40,
            "moe_num_shared_experts": 0,
            "num_hidden_layers": 4,
            "moe_layer_interval": 2,
            "moe_layer_end_index": 2,
        },
    ),
    "deepseek_v2": (
        "deepseek_v2",
        {**LATENT, **ROUTED, **GROUPS, "head_dim": 8, "topk_method": "group_limited_greedy"},
    ),
    "deepseek_v2-greedy": ("deepseek_v2", {**LATENT, **ROUTED, "head_dim": 8}),
    "deepseek_v3": ("deepseek_v3", {**LATENT, **ROUTED, **GROUPS, "head_dim": 8}),
    "minicpm3": (
        "minicpm3",
        {**LATENT, "scale_emb": 3, "scale_depth": 1.1, "dim_model_base": 16, "tie_word_embeddings": True},
    ),
    "granitemoe_swa": ("granitemoe_swa", {**LOCAL, "sliding_window": 8, "shared_intermediate_size": 56}),
    "llama4": (
        "llama4",
        {
            "num_local_experts": 8,
            "num_hidden_layers": 5,
            "intermediate_size_mlp": 56,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16,
            "floor_scale": 8,
            "attn_scale": 0.3,
        },
    ),
    "llama4-plain": (
        "llama4",
        {
            "num_local_experts": 4,
            "no_rope_layers": [0, 1],
            "attention_chunk_size": 7,
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "attention_bias": True,
        },
    ),
    "llama4_whole": ("llama4_whole", {"num_local_experts": 4, "attention_chunk_size": 16, "intermediate_size_mlp": 56}),
    "afmoe": (
        "afmoe",
        {
            **EXPERTS,
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "mup_enabled": True,
            "route_scale": 1.7,
            "num_shared_experts": 1,
        },
    ),
    "hy_v3": ("hy_v3", {**EXPERTS, "router_scaling_factor": 1.7, "num_shared_experts": 2}),
    "youtu": ("youtu", {**LATENT, "head_dim": 8}),
    "glm4_moe_lite": ("glm4_moe_lite", {**LATENT, **ROUTED, "first_k_dense_replace": None}),
    "granitemoeshared": (
        "granitemoeshared",
        {
            **LOCAL,
            "shared_intermediate_size": 56,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "flex_olmo": ("flex_olmo", {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True}),
    "solar_open": ("solar_open", {**ROUTED, **GROUPS, "first_k_dense_replace": None}),
    "exaone_moe": (
        "exaone_moe",
        {
            **EXPERTS,
            **GROUPS,
            "sliding_window": 8,
            "num_hidden_layers": 4,
            "num_shared_experts": 2,
            "routed_scaling_factor": 1.7,
        },
    ),
    "mellum": (
        "mellum",
        {
            **EXPERTS,
            "num_hidden_layers": 3,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", *ALTERNATE],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
        },
    ),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {"num_experts": 8, "moe_topk": 3}),
}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
        "truncate": False,
    },
    "yarn-attention": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.3,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope-long": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
    },
    "longrope-short": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 256,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
    },
}
CASES |= {f"llama-{name}": ("llama", {"rope_parameters": {"rope_theta": 5e5, **s}}) for name, s in SCALINGS.items()}

# Family and overrides as above; what to drop from the config that transformers writes, and what to put in.
FULL_AND_LOCAL = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e4},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
OLD_CONFIGS = {
    "llama": ("llama", {}, (), {"architectures": ["LLaMAForCausalLM"]}),
    "internlm3": (
        "internlm3",
        {"attention_bias": True, "mlp_bias": True},
        ("attention_bias", "mlp_bias"),
        {"architectures": ["InternLM3ForCausalLM"], "qkv_bias": True, "bias": True},
    ),
    "gemma": ("gemma", {"tie_word_embeddings": True}, ("tie_word_embeddings",), {"hidden_act": "gelu"}),
    "gemma2": (
        "gemma2",
        {"tie_word_embeddings": True, "sliding_window": 4},
        ("layer_types", "tie_word_embeddings"),
        {},
    ),
    "gemma3": (
        "gemma3",
        {"sliding_window": 4, "num_hidden_layers": 3, "sliding_window_pattern": 2, "rope_parameters": FULL_AND_LOCAL},
        ("rope_parameters", "layer_types"),
        {
            "sliding_window_pattern": 2,
            "rope_theta": 5e4,
            "rope_local_base_freq": 1e3,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "phi3": (
        *CASES["phi3-longrope"],
        ("rope_parameters",),
        {
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {
                "type": "su",
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0],
            },
        },
    ),
    "phi": ("phi", {}, ("rope_parameters", "partial_rotary_factor", "layer_norm_eps"), {"rope_theta": 1e4}),
    "stablelm": ("stablelm", {}, ("rope_parameters", "partial_rotary_factor"), {"rope_theta": 1e4}),
    "glm": ("glm", {}, ("rope_parameters", "partial_rotary_factor", "attention_bias"), {"rope_theta": 1e4}),
    "olmo3": (
        *CASES["olmo3-yarn"],
        ("rope_parameters", "layer_types"),
        {
            "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        },
    ),
    "qwen3_moe": (*CASES["qwen3_moe"], ("num_local_experts",), {"num_experts": 8}),
    "minimax_m2": (
        *CASES["minimax_m2"],
        ("rope_parameters", "partial_rotary_factor"),
        {"rope_theta": 1e4, "rotary_dim": 8},
    ),
    "gpt_oss": (
        *CASES["gpt_oss"],
        ("rope_parameters", "layer_types", "swiglu_alpha"),
        {
            "rope_theta": 1.5e5,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "truncate": False,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "qwen2_5_vl_whole": (
        *CASES["qwen2_5_vl_whole"],
        ("text_config",),
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e4,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        },
    ),
    "gpt_neox": (
        "gpt_neox",
        {"rotary_pct": 0.5},
        ("rope_parameters", "layer_norm_eps"),
        {"rotary_pct": 0.5, "rotary_emb_base": 10000},
    ),
    "falcon": ("falcon", {"ffn_hidden_size": 256}, ("rope_parameters", "ffn_hidden_size", "activation"), {}),
    "bloom": (
        "bloom",
        {"tie_word_embeddings": True},
        ("hidden_size", "tie_word_embeddings"),
        {"n_embed": 64, "seq_length": 2048},
    ),
    "olmoe": (*CASES["olmoe-normed"], ("rope_parameters",), {"rope_theta": 1e4}),
    "hunyuan_v1_dense": (
        *CASES["hunyuan_v1_dense-alpha"],
        ("rope_parameters",),
        {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0}, "use_qk_norm": True},
    ),
    "nemotron": (
        "nemotron",
        {},
        ("rope_parameters", "head_dim"),
        {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
    "smollm3": (*CASES["smollm3"], ("no_rope_layers", "layer_types"), {}),
    "exaone4": (*CASES["exaone4"], (), {"sliding_window_pattern": "LLLG"}),
    "cohere2": (*CASES["cohere2"], ("layer_types",), {"sliding_window_pattern": 4}),
    "gpt2": ("gpt2", {"tie_word_embeddings": True}, ("tie_word_embeddings", "layer_norm_epsilon", "n_inner"), {}),
}

# Every order of norms, kind of norm, of rope and of MLP.
FUSED = ["qwen3", "gemma2", "gemma3", "glm", "olmo2", "smollm3-window", "starcoder2", "gpt2", "granite"]
FUSED += ["cohere-qk-norm", "hunyuan_v1_dense", "bloom"]
# Families that are compared in bfloat16 too: every kind of norm and of rounding.
HALVES = ["llama", "qwen3", "gemma2", "gemma3", "olmo2", "cohere", "gpt2"]
HALVES += ["mixtral", "gpt_oss"]
