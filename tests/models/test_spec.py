from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.errors import ModelError
from octavo.models.registry import ARCHITECTURES
from octavo.models.spec import ModelSpec
from tests.builders import make_config

LLAMA_2 = {  # as on the hub before grouped heads, head_dim and rope_theta were written
    "architectures": ["LlamaForCausalLM"],
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}


def spec_of(tmp_path: Path, config: object = None, generation: object = None, **changes: object) -> ModelSpec:
    config = {**LLAMA_2, **changes} if config is None else config
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return ModelSpec.from_folder(tmp_path)


def test_overrides(tmp_path: Path) -> None:
    spec_of(tmp_path)
    spec = ModelSpec.from_folder(tmp_path, {"rope_theta": 5e5, "torch_dtype": "bfloat16"})
    assert (spec.ropes[0].theta, spec.dtype) == (5e5, "bfloat16")
    with pytest.raises(ModelError, match="vocab_size"):
        ModelSpec.from_folder(tmp_path, {"vocab_size": "many"})


def test_what_an_old_config_leaves_out(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert (spec.num_kv_heads, spec.head_dim, spec.dtype, spec.eos_ids) == (32, 128, "float16", (2,))
    rope = spec.ropes[0]
    assert spec.ropes == (rope,) * 32
    assert (rope.kind, rope.theta, rope.rotary_dim) == ("default", 10000.0, 128)
    assert spec.windows == (None,) * 32
    assert not (spec.qkv_bias or spec.o_bias or spec.mlp_bias or spec.qk_norm or spec.tie_embeddings)


def test_new_keys(tmp_path: Path) -> None:
    spec = spec_of(
        tmp_path,
        dtype="bfloat16",
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5, "partial_rotary_factor": 0.5},
        generation={"eos_token_id": [7, 2]},
        num_key_value_heads=8,
        head_dim=64,
    )
    assert (spec.dtype, spec.eos_ids, spec.num_kv_heads, spec.head_dim) == ("bfloat16", (7, 2), 8, 64)
    rope = spec.ropes[0]
    assert (rope.kind, rope.theta, rope.factor, rope.rotary_dim) == ("linear", 5e5, 2.0, 32)


def test_old_and_new_rope_keys_mean_the_same(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    old = spec_of(tmp_path, rope_theta=5e5, rope_scaling={"type": "llama3", **scaling})
    new = spec_of(tmp_path, rope_parameters={"rope_theta": 5e5, "rope_type": "llama3", **scaling})
    assert old == new
    assert old.ropes[0].factor == 8.0


def test_yarn_extends_the_context(tmp_path: Path) -> None:
    assert spec_of(tmp_path, rope_scaling={"rope_type": "yarn", "factor": 4.0}).max_position == 16384


def test_windows_by_family(tmp_path: Path) -> None:
    def windows(architecture: str, **changes: object) -> tuple[int | None, ...]:
        return spec_of(tmp_path, architectures=[architecture], num_hidden_layers=3, **changes).windows

    assert windows("MistralForCausalLM") == (4096,) * 3
    assert windows("MistralForCausalLM", sliding_window=None) == (None,) * 3
    assert windows("MistralForCausalLM", sliding_window=9) == (9,) * 3
    assert windows("Qwen2ForCausalLM", sliding_window=9) == (None,) * 3
    used = {"sliding_window": 9, "use_sliding_window": True}
    assert windows("Qwen2ForCausalLM", max_window_layers=2, **used) == (None, None, 9)
    assert windows("Qwen3ForCausalLM", **used) == (None,) * 3  # from layer 28 on
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows("Qwen3ForCausalLM", layer_types=types, **used) == (9, None, 9)
    assert windows("Qwen3ForCausalLM", layer_types=types, sliding_window=9) == (None,) * 3
    assert windows("MinistralForCausalLM", layer_types=types, sliding_window=9) == (9, None, 9)
    assert windows("LlamaForCausalLM", sliding_window=9) == (None,) * 3
    assert windows("Gemma2ForCausalLM", sliding_window=9) == (9, None, 9)
    assert windows("Gemma3ForCausalLM", sliding_window=9, sliding_window_pattern=3) == (9, 9, None)
    assert windows("Cohere2ForCausalLM") == (4096,) * 3
    assert windows("Phi3ForCausalLM") == (None,) * 3
    assert windows("Phi3ForCausalLM", sliding_window=9) == (9,) * 3
    assert windows("SmolLM3ForCausalLM", no_rope_layers=[1, 0, 1], sliding_window=9) == (None,) * 3
    assert windows("SmolLM3ForCausalLM", no_rope_layers=[1, 0, 1], **used) == (None, 9, None)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"vocab_size": "32000"}, "vocab_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 4096.0}, "hidden_size"),
        ({"hidden_size": 4097}, "head_dim"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"num_key_value_heads": 64}, "num_key_value_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"hidden_act": "relu7"}, "hidden_act"),
        ({"torch_dtype": "int8"}, "torch_dtype"),
        ({"dtype": "float64"}, "dtype"),
        ({"eos_token_id": 32000}, "eos_token_id"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"architectures": []}, "architectures is empty"),
        ({"architectures": None}, "architectures is missing"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"quantization_config": {"quant_method": "quark"}}, "quantised .quark"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_scaling": 4}, "rope_scaling"),
        ({"rope_scaling": {"type": "mrope"}}, "rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": "1"}}, "mscale_all_dim"),
        ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 1}}, "original_max_position_embeddings"),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0] * 63 + [0], "long_factor": []}}, r"short_factor\[63\]"),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0] * 63 + ["1"], "long_factor": []}}, "short_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters differs"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.01}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 2.0, "low_freq_factor": 4, "high_freq_factor": 4}},
            "high_freq_factor",
        ),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 64}}, "short_factor"),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0] * 64, "long_factor": [1.0]}}, "long_factor"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, changes: dict[str, object], key: str) -> None:
    with pytest.raises(ModelError, match=f"config.json: .*{key}"):
        spec_of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("architecture", "changes", "key"),
    [
        ("GemmaForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("Gemma2ForCausalLM", {"hidden_activation": "quick_gelu"}, "hidden_activation"),
        ("Gemma2ForCausalLM", {"attn_logit_softcapping": 0}, "attn_logit_softcapping"),
        ("Gemma3ForCausalLM", {"rope_parameters": {"full_attention": {"rope_theta": -1.0}}}, "rope_theta"),
        ("Gemma3ForCausalLM", {"rope_parameters": {"full_attention": 7, "sliding_attention": {}}}, "full_attention"),
        ("GPT2LMHeadModel", {"n_embd": "768"}, "n_embd"),
        ("GPT2LMHeadModel", {"n_embd": 64, "n_head": 4, "n_layer": 1}, "n_positions is missing"),
        (
            "GPT2LMHeadModel",
            {"n_embd": 64, "scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx",
        ),
        ("Phi3ForCausalLM", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling must be longrope"),
        ("OPTForCausalLM", {"ffn_dim": 64, "word_embed_proj_dim": 32}, "word_embed_proj_dim"),
        ("OPTForCausalLM", {"ffn_dim": 64, "do_layer_norm_before": False}, "do_layer_norm_before"),
        ("GPTNeoForCausalLM", {"num_layers": 2, "num_heads": 4, "attention_types": [[["near"], 2]]}, "attention_types"),
        (
            "GPTNeoForCausalLM",
            {"num_layers": 3, "num_heads": 4, "attention_types": [[["local"], 2]]},
            "attention_types",
        ),
        ("ApertusForCausalLM", {"hidden_act": "relu"}, "hidden_act"),
        ("LlamaForCausalLM", {"hidden_act": "relu2"}, "hidden_act must be one of silu, gelu, gelu_tanh for a gate"),
        ("OlmoForCausalLM", {"clip_qkv": -1.0}, "clip_qkv"),
        ("AfmoeForCausalLM", {"score_func": "softmax"}, "score_func"),
        ("AfmoeForCausalLM", {"n_group": 2}, "n_group"),
        ("MptForCausalLM", {"attn_config": {"qk_ln": True}}, "attn_config: qk_ln"),
        ("MptForCausalLM", {"attn_config": {"alibi": False}}, "attn_config: alibi"),
        ("BloomForCausalLM", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection"),
        ("Llama4ForCausalLM", {"intermediate_size_mlp": 64, "num_experts_per_tok": 2}, "num_experts_per_tok"),
        ("Llama4ForCausalLM", {"intermediate_size_mlp": 64, "layer_types": ["full_attention"]}, "layer_types"),
        ("Mistral3ForConditionalGeneration", {"text_config": {"model_type": "mistral4"}}, "text_config: model_type"),
        ("CodeGenForCausalLM", {"n_embd": 60, "n_head": 5, "n_layer": 1, "n_positions": 64, "rotary_dim": 4}, "n_head"),
        ("HunYuanMoEV1ForCausalLM", {"use_cla": True}, "use_cla"),
        ("HunYuanMoEV1ForCausalLM", {"num_experts": [4, 8]}, "num_experts"),
        ("HunYuanMoEV1ForCausalLM", {"num_shared_expert": 2}, "num_shared_expert"),
        ("GraniteSWAForCausalLM", {"layer_rope_theta": [1e4]}, "layer_rope_theta"),
        ("ExaoneMoeForCausalLM", {"mlp_layer_types": ["wide"] * 32}, "mlp_layer_types"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [2] * 32}, "no_rope_layers"),
        ("CohereForCausalLM", {"layer_norm_eps": 2}, "layer_norm_eps"),
        ("GraniteForCausalLM", {"logits_scaling": 0}, "logits_scaling"),
    ],
)
def test_bad_values_of_families_are_named(tmp_path: Path, architecture: str, changes: dict, key: str) -> None:
    with pytest.raises(ModelError, match=f"config.json: .*{key}"):
        spec_of(tmp_path, architectures=[architecture], **changes)


def test_gemmas_soft_caps_by_default_and_switched_off(tmp_path: Path) -> None:
    def caps(**changes: object) -> tuple[float | None, float | None]:
        spec = spec_of(tmp_path, architectures=["Gemma2ForCausalLM"], **changes)
        return spec.score_softcap, spec.logit_softcap

    assert caps() == (50.0, 30.0)
    assert caps(attn_logit_softcapping=None, final_logit_softcapping=10) == (None, 10.0)


@pytest.mark.parametrize("key", ["vocab_size", "intermediate_size", "num_attention_heads", "max_position_embeddings"])
def test_what_cannot_be_guessed_must_be_there(tmp_path: Path, key: str) -> None:
    with pytest.raises(ModelError, match=f"{key} is missing"):
        spec_of(tmp_path, config={name: value for name, value in LLAMA_2.items() if name != key})


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": ' * 100_000, "\xff"])
def test_a_config_that_is_no_object(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        spec_of(tmp_path, config=text)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        ModelSpec.from_folder(tmp_path)


def test_a_bad_generation_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="generation_config: eos_token_id"):
        spec_of(tmp_path, generation={"eos_token_id": 99999})


def test_layer_types_of_another_kind_or_length(tmp_path: Path) -> None:
    qwen = {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True, "num_hidden_layers": 2}
    with pytest.raises(ModelError, match="layer_types has the unknown kind 'chunked_attention'"):
        spec_of(tmp_path, layer_types=["full_attention", "chunked_attention"], **qwen)
    with pytest.raises(ModelError, match="layer_types must have one entry"):
        spec_of(tmp_path, layer_types=["full_attention"], **qwen)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, -(10**400)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FAMILY_KEYS = [  # of one family or a few
    "attn_logit_softcapping",
    "embedding_multiplier",
    "hidden_activation",
    "layer_norm_eps",
    "logit_scale",
    "logits_scaling",
    "n_embd",
    "no_rope_layer_interval",
    "no_rope_layers",
    "norm_epsilon",
    "query_pre_attn_scalar",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_theta",
    "sliding_window_pattern",
    "use_qk_norm",
]
SCALING_KEYS = ["factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "attention_factor", "truncate"] + [
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "rope_theta",
    "partial_rotary_factor",
    "short_factor",
    "long_factor",
]


@settings(deadline=None)
@given(
    architecture=st.sampled_from(sorted(ARCHITECTURES)),
    changes=st.dictionaries(
        st.sampled_from(
            [
                *LLAMA_2,
                *FAMILY_KEYS,
                "layer_types",
                "sliding_window",
                "use_sliding_window",
                "generation_config",
                "head_dim",
            ]
        ),
        JSON_VALUES,
        max_size=3,
    ),
    kind=st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3", "longrope"]),
    scaling=st.dictionaries(st.sampled_from(SCALING_KEYS), JSON_VALUES | st.floats(0.001, 1e6), max_size=6),
)
def test_any_config_is_a_spec_or_a_model_error(
    tmp_path_factory: pytest.TempPathFactory, architecture: str, changes: dict, kind: str, scaling: dict
) -> None:
    folder = tmp_path_factory.mktemp("any")
    config = {**LLAMA_2, "architectures": [architecture], "rope_scaling": {"rope_type": kind, **scaling}, **changes}
    if architecture == "GPT2LMHeadModel":
        config = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, **config}
    try:
        spec = spec_of(folder, config=config)
    except ModelError as error:
        assert "config.json: " in str(error) or "architecture " in str(error)
    else:
        assert len(spec.windows) == len(spec.ropes) == spec.num_layers
        for rope in set(spec.ropes) - {None}:
            assert rope.frequencies(64).shape == (rope.rotary_dim // 2,)


SCALED = [
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
    {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False},
    {"rope_type": "yarn", "factor": 40.0, "beta_fast": 8, "beta_slow": 4, "original_max_position_embeddings": 4096},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 5e5,
    },
    {
        "rope_type": "longrope",
        "short_factor": [1 + i / 64 for i in range(64)],
        "long_factor": [1 + i for i in range(64)],
        "original_max_position_embeddings": 4096,
    },
]


@pytest.mark.parametrize("scaling", SCALED, ids=lambda s: s["rope_type"])
@pytest.mark.parametrize("max_len", [4096, 131072])
def test_frequencies_are_bit_for_bit_those_of_transformers(tmp_path: Path, scaling: dict, max_len: int) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = make_config("llama", head_dim=128, max_position_embeddings=131072, rope_parameters=dict(scaling))
    if scaling["rope_type"] == "default":
        frequencies, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu", seq_len=max_len)
    (tmp_path / "config.json").write_text(
        json.dumps({**config.to_dict(), "architectures": ["LlamaForCausalLM"]}), encoding="utf-8"
    )
    rope = ModelSpec.from_folder(tmp_path).ropes[0]
    assert torch.equal(rope.frequencies(max_len), frequencies)
    assert rope.attention_factor == pytest.approx(factor, rel=1e-12)
