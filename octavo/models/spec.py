"""ModelSpec: a decoder's shape, read from its folder and checked. After it, values are trusted.

What all families share is read here; what a family does in its own way is in its `configure` (see llama.py).
This file does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from octavo.models.config import ConfigReader, read_json
from octavo.models.rope import RopeSpec

DTYPES = ("bfloat16", "float16", "float32")


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
    rms_norm_eps: float
    rope: RopeSpec
    windows: tuple[int | None, ...]  # one a layer: tokens that its attention sees, None for all
    max_position: int  # tokens that the model is made for
    dtype: str  # of the checkpoint
    eos_ids: tuple[int, ...]
    initializer_range: float
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each query and key head before it is rotated
    tie_embeddings: bool = False

    @staticmethod
    def from_folder(folder: Path) -> ModelSpec:
        """Reads config.json and, if there is one, generation_config.json."""
        from octavo.models.registry import load_class

        config = ConfigReader(read_json(folder / "config.json"), str(folder / "config.json"))
        if config.has("quantization_config"):
            method = config.section("quantization_config").raw("quant_method", "unknown")
            raise config.error("quantization_config", f"is not supported: the weights are quantised ({method!s:.40})")
        names = config.texts("architectures")
        if not names:
            raise config.error("architectures", "is empty")
        generation = folder / "generation_config.json"
        if generation.exists():
            config.values["generation_config"] = read_json(generation)
        return load_class(names[0]).configure(config)

    @classmethod
    def from_config(cls, config: ConfigReader) -> ModelSpec:
        """The keys as Llama uses them; a family changes the rest with `dataclasses.replace`."""
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
        if activation not in ("silu", "swish"):
            raise config.error("hidden_act", f"must be silu for this architecture, got {activation!r:.80}")
        max_position = config.integer("max_position_embeddings", high=2**30)
        rope = RopeSpec.from_config(config, head_dim, max_position)
        if rope.kind == "yarn":  # the config may give either the original or the extended context
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
            rms_norm_eps=config.number("rms_norm_eps", high=1.0),
            rope=rope,
            windows=(None,) * num_layers,
            max_position=max_position,
            dtype=_dtype(config),
            eos_ids=_eos_ids(config, vocab_size),
            initializer_range=config.number("initializer_range", 0.02, high=100.0),
            tie_embeddings=config.flag("tie_word_embeddings", False),
        )


def sliding_window(config: ConfigReader) -> int | None:
    """Null means none; a config that does not speak of it at all has transformers' default."""
    if "sliding_window" in config.values and not config.has("sliding_window"):
        return None
    return config.integer("sliding_window", 4096, high=2**30)


def layer_windows(config: ConfigReader, num_layers: int, first: int) -> tuple[int | None, ...]:
    """A window or none for each layer, as `layer_types` says; without it, windows from layer `first` on."""
    window = sliding_window(config)
    if not config.has("layer_types"):
        return tuple(window if layer >= first else None for layer in range(num_layers))
    kinds: dict[str, int | None] = {"full_attention": None, "sliding_attention": window}
    types = config.texts("layer_types")
    if len(types) != num_layers:
        raise config.error("layer_types", f"must have one entry for each of {num_layers} layers, got {len(types)}")
    if unknown := set(types) - set(kinds):
        raise config.error("layer_types", f"has the unknown kind {min(unknown)!r:.80}; known: {', '.join(kinds)}")
    return tuple(kinds[kind] for kind in types)


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
