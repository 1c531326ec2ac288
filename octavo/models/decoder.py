"""The decoder that all families share: embedding, layers of attention and feed-forward on a residual stream, head.

A family is a subclass that changes what `configure` reads from a config, or the checkpoint's `paths`.
Legend: T tokens of the step, S sampled rows, E hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from octavo.attention.base import ForwardBatch
from octavo.layers.attention import Attention
from octavo.layers.embedding import Embedding, LMHead
from octavo.layers.mlp import SwiGLU
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import Rope, Rotation
from octavo.models.config import ConfigReader
from octavo.models.spec import ModelSpec

# Where the checkpoint keeps each part; those of a layer are below `layer`.
PATHS: Mapping[str, str] = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "layer": "model.layers.{}.",
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class DecoderLayer:
    __slots__ = ("attention", "input_norm", "mlp", "post_norm")

    def __init__(self, spec: ModelSpec, layer: int, rope: Rope, dtype: torch.dtype, device: torch.device) -> None:
        self.input_norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, dtype, device)
        self.attention = Attention(
            layer,
            spec.hidden_size,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            rope,
            spec.windows[layer],
            spec.qkv_bias,
            spec.o_bias,
            spec.rms_norm_eps if spec.qk_norm else None,
            dtype,
            device,
        )
        self.post_norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, dtype, device)
        self.mlp = SwiGLU(spec.hidden_size, spec.intermediate_size, spec.mlp_bias, dtype, device)

    def __call__(
        self, x_TE: Tensor, residual_TE: Tensor | None, rotation: Rotation | None, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        x_TE, residual_TE = self.input_norm(x_TE, residual_TE)
        x_TE = self.attention(x_TE, rotation, batch)
        x_TE, residual_TE = self.post_norm(x_TE, residual_TE)
        return self.mlp(x_TE), residual_TE

    def names(self, paths: Mapping[str, str], prefix: str) -> dict[str, Tensor]:
        at = {part: prefix + path for part, path in paths.items()}
        attention = self.attention
        found = self.input_norm.names(at["input_norm"]) | self.post_norm.names(at["post_norm"])
        found |= attention.qkv.names(at["q"], at["k"], at["v"]) | attention.o.names(at["o"])
        if attention.qk_norm is not None:
            found |= attention.qk_norm.names(at["q_norm"], at["k_norm"])
        return found | self.mlp.gate_up.names(at["gate"], at["up"]) | self.mlp.down.names(at["down"])


class Decoder:
    """A model. `names` is the checkpoint map as data: every tensor's name and the memory that it is copied into."""

    paths: ClassVar[Mapping[str, str]] = PATHS

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, max_len: int) -> None:
        self.spec = spec
        self.num_bytes = 0  # of the weights; known after finish()
        self.dtype = dtype
        self.device = device
        frequencies = spec.rope.frequencies(max_len)
        self.rope = Rope(frequencies, spec.rope.attention_factor, spec.head_dim, max_len, dtype, device)
        self.embed = Embedding(spec.vocab_size, spec.hidden_size, dtype, device)
        self.layers = [DecoderLayer(spec, layer, self.rope, dtype, device) for layer in range(spec.num_layers)]
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, dtype, device)
        tied = self.embed if spec.tie_embeddings else None
        self.head = LMHead(spec.vocab_size, spec.hidden_size, dtype, device, tied)

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        """The family's reading of a config."""
        return ModelSpec.from_config(config)

    @property
    def names(self) -> dict[str, Tensor]:
        """With tied embeddings the head's name maps to the embedding's memory: either name may bring it."""
        found = self.embed.names(self.paths["embed"]) | self.norm.names(self.paths["norm"])
        for index, layer in enumerate(self.layers):
            found |= layer.names(self.paths, self.paths["layer"].format(index))
        return found | self.head.names(self.paths["head"])

    def finish(self) -> None:
        """Once, when all weights are in place: each part may then keep them in another form, and `names` is over."""
        self.num_bytes = sum(t.nbytes for t in {t.data_ptr(): t for t in self.names.values()}.values())
        for layer in self.layers:
            layer.attention.finish()
            layer.mlp.finish()
        self.head.finish()
        if self.spec.tie_embeddings and self.head.packed is not None:
            self.num_bytes += self.embed.weight_VE.nbytes

    def forward(self, batch: ForwardBatch) -> Tensor:
        """The last hidden state of every token, [T, E]; the step's keys and values go to the backend's cache."""
        x_TE = self.embed(batch.token_ids_T)
        # One kernel turns queries and keys and fills the cache, where both have it: it gathers its own rows.
        fused = self.rope.kernels is not None and batch.attention.cache(0) is not None
        rotation = None if fused else self.rope.rows(batch.positions_T)
        residual_TE: Tensor | None = None
        for layer in self.layers:
            x_TE, residual_TE = layer(x_TE, residual_TE, rotation, batch)
        return self.norm(x_TE, residual_TE)[0]

    def logits(self, hidden_SE: Tensor) -> Tensor:
        """[S, V], in the model's type."""
        return self.head(hidden_SE)
