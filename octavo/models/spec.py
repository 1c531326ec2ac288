"""ModelSpec: a decoder's shape, read from its folder and checked. After it, values are trusted.

What all families share is read here; what a family does in its own way is in its `configure` (see llama.py).
This file does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from octavo.models.config import ConfigReader, read_json
from octavo.models.rope import RopeSpec
from octavo.moe.base import Routing
from octavo.quant import METHODS

DTYPES = ("bfloat16", "float16", "float32")
# What configs call them, and what octavo.layers.mlp does.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
}
# Of an MLP with a gate, and of experts, which are one kernel on a GPU.
GATES = ("silu", "gelu", "gelu_tanh")


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """DeepSeek's latent attention: what the cache keeps of a token is one vector for all heads.

    Its first `rank` values give keys and values of every head by a matrix each; the other `rope_dim` are turned by the
    position and are the rest of every head's key. A spec with a latent has one key/value head of that size.
    """

    rank: int
    rope_dim: int
    nope_dim: int  # of a head's query and key, what positions do not turn
    value_dim: int  # of a head
    query_rank: int | None  # queries come out of a vector of this size; None: out of the hidden state


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """Layers that have experts in place of an MLP."""

    routing: Routing
    inner_size: int  # of an expert
    layers: tuple[bool, ...]  # which of them
    shared_size: int = 0  # inner size of the MLP beside the experts, that all tokens see
    shared_gate: bool = False  # it is weighed by a sigmoid
    wide_router: bool = False  # logits come out of a product in float32
    correction: int = 0  # dimensions of the bias for choosing; 0: none
    bias: bool = False  # of router and experts
    interleaved: bool = False  # rows of gate and up alternate
    transposed: bool = False  # stacks of a checkpoint are
    packed: bool = False  # they are in MXFP4
    clamp: tuple[float, float] | None = None  # GPT-OSS's activation: alpha and limit


@dataclass(frozen=True, slots=True)
class ModelSpec:
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    ropes: tuple[RopeSpec | None, ...]  # one a layer; None: it sees no positions
    windows: tuple[int | None, ...]  # one a layer: tokens that its attention sees, None for all
    max_position: int  # tokens that the model is made for
    dtype: str  # of the checkpoint
    eos_ids: tuple[int, ...]
    initializer_range: float
    attention_scale: float  # of scores
    activation: str = "silu"  # one of octavo.layers.mlp.ACTIVATIONS
    gated: bool = True  # the MLP: activation(gate) * up, else activation(up)
    # rms; rms_wide: rounded once, when it is weighted; rms_plus_one: wide, its weights stored less one;
    # layer: a layer norm with biases; layer_unbiased; layer_plus_one: with biases, its weights stored less one;
    # layer_plain, rms_plain: without weights
    norm: Literal[
        "rms", "rms_wide", "rms_plus_one", "rms_plain", "layer", "layer_unbiased", "layer_plus_one", "layer_plain"
    ] = "rms"
    # Of a layer's norms and parts, where a config chooses: one of octavo.models.decoder.ORDERS; None: the family's.
    order: str | None = None
    # Norm of queries and keys before they are rotated, by head as `norm` says, over all heads (wide), or a layer norm
    # by head, with weights of its own or the same weights and biases for all.
    qk_norm: Literal["head", "full", "head_layer", "shared_layer"] | None = None
    qk_norm_late: bool = False  # after they are rotated
    qkv_clip: float | None = None  # queries, keys and values stay within it, once they are normed
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    latent: LatentSpec | None = None
    experts: ExpertsSpec | None = None
    chunked: bool = False  # windows are chunks: see AttentionSpec
    slopes: tuple[float, ...] | None = None  # of heads: what a score loses for each token before the query (ALiBi)
    sinks: bool = False  # a score of each head beside those of its tokens, which takes a share and gives nothing
    tie_embeddings: bool = False
    # (beta, length): queries, in some layers perhaps, are scaled by 1 + beta * log(1 + lengths before their position).
    query_scale: tuple[float, int] | None = None
    score_softcap: float | None = None  # of attention scores
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what each part adds to the stream
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    causal: bool = True  # a token sees what is before it, and not what comes after it
    type_vocab_size: int = 0  # embeddings of which of two texts a token is of; 0: none

    @staticmethod
    def from_folder(folder: Path, overrides: Mapping[str, Any] | None = None) -> ModelSpec:
        """Reads config.json and, if there is one, generation_config.json."""
        from octavo.models.registry import load_class

        config = read_config(folder, overrides)
        names = config.texts("architectures")
        if not names:
            raise config.error("architectures", "is empty")
        family = load_class(names[0])
        if config.has("quantization_config"):
            method = config.section("quantization_config").raw("quant_method", "unknown")
            if method not in family.quantised and method not in METHODS:
                raise config.error(
                    "quantization_config", f"is not supported: the weights are quantised ({method!s:.40})"
                )
        generation = folder / "generation_config.json"
        if generation.exists():
            config.values["generation_config"] = read_json(generation)
        spec = family.configure(config)
        if spec.activation not in GATES and (spec.gated or spec.experts is not None):
            raise config.error("hidden_act", f"must be one of {', '.join(GATES)} for a gate, got {spec.activation}")
        return spec

    @classmethod
    def from_config(
        cls,
        config: ConfigReader,
        read_rope: Callable[[ConfigReader, int, int], RopeSpec | None] = RopeSpec.from_config,
    ) -> ModelSpec:
        """The keys as Llama uses them; a family changes the rest with `dataclasses.replace`.

        `read_rope` gets the config, the head size and the context, and says how most layers rotate.
        """
        hidden_size = config.integer("hidden_size")
        num_layers = config.integer("num_hidden_layers", high=2**12)
        num_heads = config.integer("num_attention_heads", high=2**14)
        num_kv_heads = config.integer("num_key_value_heads", num_heads, high=num_heads)
        vocab_size = config.integer("vocab_size", high=2**24)
        if num_heads % num_kv_heads:
            raise config.error(
                "num_key_value_heads", f"must divide num_attention_heads ({num_heads}), got {num_kv_heads}"
            )
        if not config.has("head_dim") and hidden_size % num_heads:
            raise config.error("head_dim", f"is missing, and {num_heads} heads do not divide hidden_size {hidden_size}")
        head_dim = config.integer("head_dim", hidden_size // num_heads, high=2**12)
        activation = config.text("hidden_act", "silu")
        if activation not in ACTIVATIONS:
            raise config.error("hidden_act", f"must be one of {', '.join(ACTIVATIONS)}, got {activation!r:.80}")
        max_position = config.integer("max_position_embeddings", high=2**30)
        rope = read_rope(config, head_dim, max_position)
        if rope is not None and rope.kind == "yarn":  # the config may give either the original or the extended context
            max_position = max(max_position, int(rope.factor * rope.original_max_position))
        return cls(
            architecture=config.texts("architectures")[0],
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=config.integer("intermediate_size", high=2**22),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            norm_eps=config.number("rms_norm_eps", high=1.0),
            ropes=(rope,) * num_layers,
            windows=(None,) * num_layers,
            max_position=max_position,
            dtype=_dtype(config),
            eos_ids=_eos_ids(config, vocab_size),
            initializer_range=config.number("initializer_range", 0.02, high=100.0),
            attention_scale=head_dim**-0.5,
            activation=ACTIVATIONS[activation],
            tie_embeddings=config.flag("tie_word_embeddings", False),
        )


def own_head_dim(config: ConfigReader) -> int:
    """For siblings of a family with a default of its own."""
    return config.integer("hidden_size") // config.integer("num_attention_heads", high=2**14)


def read_config(folder: Path, overrides: Mapping[str, Any] | None = None) -> ConfigReader:
    """config.json; `overrides` stand for what it says. A section of it (`text_config`) is changed, and not replaced."""
    values = read_json(folder / "config.json")
    for key, value in (overrides or {}).items():
        section = key.endswith("_config") and isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if section else value
    return ConfigReader(values, str(folder / "config.json"))


def sliding_window(config: ConfigReader, default: int | None = 4096) -> int | None:
    """Null means none; a config that does not speak of it at all has transformers' default."""
    if not config.has("sliding_window") and ("sliding_window" in config.values or default is None):
        return None
    return config.integer("sliding_window", default, high=2**30)


def sliding_layers(config: ConfigReader, num_layers: int, otherwise: Callable[[int], bool]) -> tuple[bool, ...]:
    """Whether each layer has a window, as `layer_types` says; without it, as `otherwise` says of its index."""
    if not config.has("layer_types"):
        return tuple(map(otherwise, range(num_layers)))
    kinds = {"full_attention": False, "sliding_attention": True}
    types = config.texts("layer_types")
    if len(types) != num_layers:
        raise config.error("layer_types", f"must have one entry for each of {num_layers} layers, got {len(types)}")
    if unknown := set(types) - set(kinds):
        raise config.error("layer_types", f"has the unknown kind {min(unknown)!r:.80}; known: {', '.join(kinds)}")
    return tuple(kinds[kind] for kind in types)


def all_but_every(count: int) -> Callable[[int], bool]:
    """For `sliding_layers`: every so many layers one sees all."""
    return lambda layer: (layer + 1) % count != 0


def sliding_pattern(config: ConfigReader, default: int) -> Callable[[int], bool]:
    """For `sliding_layers`: `sliding_window_pattern`, a count; beside `layer_types` it may be anything."""
    if config.has("layer_types"):
        return all_but_every(default)
    return all_but_every(config.integer("sliding_window_pattern", default))


def layer_windows(config: ConfigReader, num_layers: int, otherwise: Callable[[int], bool]) -> tuple[int | None, ...]:
    """The window of each sliding layer, None for the others."""
    window = sliding_window(config)
    return tuple(window if slides else None for slides in sliding_layers(config, num_layers, otherwise))


def _dtype(config: ConfigReader) -> str:
    key = "dtype" if config.has("dtype") else "torch_dtype"
    name = config.text(key, "float32").removeprefix("torch.")
    if name not in DTYPES:
        raise config.error(key, f"must be one of {', '.join(DTYPES)}, got {name!r:.80}")
    return name


def _eos_ids(config: ConfigReader, vocab_size: int) -> tuple[int, ...]:
    """Ids that end an answer: of the generation config, then of the config."""
    found: dict[int, None] = {}
    for source in (config.section("generation_config"), config):
        value = source.raw("eos_token_id", [])
        ids = value if type(value) is list else [value]
        for token in ids:
            if type(token) is not int or not 0 <= token < vocab_size:
                raise source.error("eos_token_id", f"must hold ids in [0, {vocab_size}), got {value!r:.80}")
            found[token] = None
    return tuple(found)
