"""The decoder that all families share: embedding, layers of attention and feed-forward on a residual stream, head.

A family is a subclass that changes what `configure` reads from a config, the checkpoint's `paths`, the order of a
layer's parts (`layer_class`, see blocks.py), or a part: every `make_` method may be overridden.
Legend: T tokens of the step, S sampled rows, E hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from octavo import kernels
from octavo.attention.base import AttendOptions, ForwardBatch
from octavo.layers.attention import Attention, Rotations
from octavo.layers.embedding import Embedding, LMHead
from octavo.layers.latent import LatentAttention
from octavo.layers.linear import Linear
from octavo.layers.mlp import MLP, GatedMLP
from octavo.layers.moe import Experts, MixtureOfExperts, Mxfp4Experts, Router
from octavo.layers.norm import LayerNorm, Norm, RMSNorm
from octavo.layers.qk_norm import FullQKNorm, HeadLayerNorm, QKNorm, SharedLayerNorm
from octavo.layers.rope import Rope
from octavo.models.blocks import Block, Feedforward, Parallel, ParallelNorms, PreNorm, Sandwich
from octavo.models.config import ConfigReader
from octavo.models.groups import LayerGroups
from octavo.models.rope import RopeSpec
from octavo.models.spec import ExpertsSpec, ModelSpec
from octavo.moe.base import MoeSpec

# Where the checkpoint keeps each part; those of a layer are below `layer`. `qkv` and `gate_up`, where a family has
# them, stand for parts that its checkpoint holds as one.
PATHS: Mapping[str, str] = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "layer": "model.layers.{}.",
    "attention_in": "input_layernorm",
    "mlp_in": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "sinks": "self_attn.sinks",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "router": "mlp.gate",
    "correction": "mlp.gate.e_score_correction_bias",
    "expert_gate": "mlp.experts.{}.gate_proj",
    "expert_up": "mlp.experts.{}.up_proj",
    "expert_down": "mlp.experts.{}.down_proj",
    "shared_gate": "mlp.shared_experts.gate_proj",
    "shared_up": "mlp.shared_experts.up_proj",
    "shared_down": "mlp.shared_experts.down_proj",
}
ORDERS: Mapping[str, type[Block]] = {
    "pre": PreNorm,
    "sandwich": Sandwich,
    "parallel": Parallel,
    "parallel_norms": ParallelNorms,
}
# Buffers that old versions of transformers saved: they follow from the config.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


class Decoder:
    """A model. `names` is the checkpoint map as data: every tensor's name and the memory that it is copied into."""

    paths: ClassVar[Mapping[str, str]] = PATHS
    ignored_suffixes: ClassVar[tuple[str, ...]] = IGNORED_SUFFIXES
    layer_class: ClassVar[type[Block]] = PreNorm
    attention_class: ClassVar[type[Attention]] = Attention
    quantised: ClassVar[tuple[str, ...]] = ()  # methods of quantization_config that it can load

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, max_len: int) -> None:
        self.spec = spec
        self.num_bytes = 0  # of the weights; known after finish()
        self.dtype = dtype
        self.device = device
        self.max_len = max_len
        self.kernels = kernels.elementwise_for(device)
        self.ropes = {rope: self.make_rope(rope) for rope in spec.ropes if rope is not None}
        self.embed = Embedding(spec.vocab_size, spec.hidden_size, dtype, device, spec.embedding_scale)
        layer_class = self.choose_layer()
        self.layers = [
            layer_class(self.make_norm, self.make_attention(layer), self.make_mlp(layer))
            for layer in range(spec.num_layers)
        ]
        self.norm: Norm = self.make_norm()
        self.layer_groups = [0] * spec.num_layers
        tied = self.embed if spec.tie_embeddings else None
        self.head = LMHead(spec.vocab_size, spec.hidden_size, dtype, device, tied, spec.head_bias)

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        """The family's reading of a config."""
        return ModelSpec.from_config(config)

    def rename(self, name: str) -> str | None:
        """A checkpoint's name for a tensor as `names` has it, None for one that is not needed."""
        return None if name.endswith(self.ignored_suffixes) else name

    def choose_layer(self) -> type[Block]:
        return self.layer_class if self.spec.order is None else ORDERS[self.spec.order]

    def make_rope(self, rope: RopeSpec) -> Rope:
        return Rope(
            rope.frequencies(self.max_len),
            rope.attention_factor,
            self.spec.head_dim,
            self.max_len,
            self.dtype,
            self.device,
            rope.interleaved,
        )

    def make_norm(self) -> RMSNorm | LayerNorm:
        spec, on = self.spec, (self.dtype, self.device)
        if spec.norm.startswith("layer"):
            return LayerNorm(
                spec.hidden_size,
                spec.norm_eps,
                spec.norm in ("layer", "layer_plus_one"),
                *on,
                offset=float(spec.norm == "layer_plus_one"),
                plain=spec.norm == "layer_plain",
                scale=spec.residual_scale,
            )
        return RMSNorm(
            spec.hidden_size,
            spec.norm_eps,
            *on,
            wide=spec.norm != "rms",
            offset=float(spec.norm == "rms_plus_one"),
            plain=spec.norm == "rms_plain",
            scale=spec.residual_scale,
        )

    def make_qk_norm(self) -> QKNorm | FullQKNorm | HeadLayerNorm | None:
        spec, on = self.spec, (self.dtype, self.device)
        heads = (spec.num_heads, spec.num_kv_heads)
        if spec.qk_norm == "full":
            return FullQKNorm(heads, spec.head_dim, spec.norm_eps, *on)
        if spec.qk_norm in ("head_layer", "shared_layer"):
            kind = HeadLayerNorm if spec.qk_norm == "head_layer" else SharedLayerNorm
            return kind(heads, spec.head_dim, spec.norm_eps, *on)
        if spec.qk_norm == "head":
            return QKNorm(
                heads,
                spec.head_dim,
                spec.norm_eps,
                *on,
                wide=spec.norm != "rms",
                offset=float(spec.norm == "rms_plus_one"),
                plain=spec.norm == "rms_plain",
                late=spec.qk_norm_late,
            )
        return None

    def make_attention(self, layer: int) -> Attention | LatentAttention:
        spec = self.spec
        rope = spec.ropes[layer]
        sinks_H = torch.zeros(spec.num_heads, dtype=self.dtype, device=self.device) if spec.sinks else None
        slopes_H = None if spec.slopes is None else torch.tensor(spec.slopes, device=self.device)
        attention = self.attention_class(
            layer,
            spec.hidden_size,
            (spec.num_heads, spec.num_kv_heads),
            spec.head_dim,
            None if rope is None else self.ropes[rope],
            AttendOptions(
                spec.attention_scale, spec.windows[layer], spec.score_softcap, sinks_H, slopes_H, causal=spec.causal
            ),
            (spec.qkv_bias, spec.o_bias),
            self.make_qk_norm(),
            self.dtype,
            self.device,
        )
        attention.clip = spec.qkv_clip
        attention.order = self.qkv_order()
        return attention

    def qkv_order(self) -> Callable[[Tensor], Tensor] | None:
        """What puts the rows of a fused q, k, v in order: queries, keys, values; None: they are."""
        return None

    def make_mlp(self, layer: int) -> Feedforward:
        """What a layer has between its second norm and the stream; all layers of most families have the same."""
        spec = self.spec
        if spec.experts is not None and spec.experts.layers[layer]:
            return self.make_experts(spec.experts)
        shape = (spec.hidden_size, spec.intermediate_size, spec.activation, spec.mlp_bias, self.dtype, self.device)
        return GatedMLP(*shape) if spec.gated else MLP(*shape)

    def make_experts(self, experts: ExpertsSpec) -> MixtureOfExperts:
        spec, on = self.spec, (self.dtype, self.device)
        moe = MoeSpec(
            experts.routing,
            spec.hidden_size,
            experts.inner_size,
            spec.activation if experts.clamp is None else "clamped",
            *on,
            bias=experts.bias,
            interleaved=experts.interleaved,
            clamp=experts.clamp or (0.0, 0.0),
        )
        shared = gate = None
        if experts.shared_size:
            shared = GatedMLP(spec.hidden_size, experts.shared_size, spec.activation, spec.mlp_bias, *on)
        if experts.shared_gate:
            gate = Linear(spec.hidden_size, 1, False, *on)
        router = Router(moe, experts.wide_router, experts.bias, experts.correction)
        stack = Mxfp4Experts(moe) if experts.packed else Experts(moe, experts.transposed)
        return MixtureOfExperts(router, stack, shared, gate)

    @property
    def names(self) -> dict[str, Tensor]:
        """With tied embeddings the head's name maps to the embedding's memory: either name may bring it."""
        found = self.embed.names(self.paths["embed"]) | self.norm.names(self.paths["norm"])
        for index, layer in enumerate(self.layers):
            prefix = self.paths["layer"].format(index)
            found |= layer.names({part: prefix + path for part, path in self.paths.items()})
        return found | self.head.names(self.paths["head"])

    def linears(self) -> list[Linear]:
        """Whose weights may be quantised: all but routers and the head."""
        return [linear for layer in self.layers for linear in layer.linears()]

    def expert_layers(self) -> list[Experts]:
        return [layer.mlp.experts for layer in self.layers if isinstance(layer.mlp, MixtureOfExperts)]

    def finish(self) -> None:
        """Once, when all weights are in place: each part may then keep them in another form, and `names` is over."""
        experts = self.expert_layers()
        kept = [tensor for tensor in self.names.values() if tensor.device.type != "meta"]
        self.num_bytes = sum(t.nbytes for t in {t.data_ptr(): t for t in kept}.values())
        self.num_bytes -= sum(each.num_bytes for each in experts)
        deferred = [linear for linear in self.linears() if linear.rows is not None]
        for part in (*self.layers, self.norm, self.head):
            part.finish()
        self.num_bytes += sum(linear.num_bytes for linear in deferred) + sum(each.num_bytes for each in experts)
        if self.spec.tie_embeddings and self.head.packed is not None:
            self.num_bytes += self.embed.weight_VE.nbytes

    def group_layers(self, groups: LayerGroups) -> None:
        """From now on a pass needs what `ForwardBatch.groups` gives; before, all layers are one group."""
        self.layer_groups = [group for group, _ in groups.places]
        for layer, (_, index) in zip(self.layers, groups.places, strict=True):
            layer.attention.layer = index

    def embed_tokens(self, batch: ForwardBatch) -> Tensor:
        return self.embed(batch.token_ids_T)

    def rotations(self, batch: ForwardBatch) -> Rotations:
        """None where one kernel turns queries and keys and fills the cache: it gathers its own rows."""
        if self.kernels is not None and batch.attention.cache(0) is not None:
            return None
        return {rope: rope.rows(batch.positions_T) for rope in self.ropes.values()}

    def forward(self, batch: ForwardBatch) -> Tensor:
        """The last hidden state of every token, [T, E]; the step's keys and values go to the backend's cache."""
        x_TE = self.embed_tokens(batch)
        rotations = self.rotations(batch)
        residual_TE: Tensor | None = None
        groups = batch.groups
        for layer, group in zip(self.layers, self.layer_groups, strict=True):
            x_TE, residual_TE = layer(x_TE, residual_TE, rotations, groups[group])
        return self.norm(x_TE, residual_TE)[0]

    def logits(self, hidden_SE: Tensor) -> Tensor:
        """[S, V], in the model's type."""
        logits_SV = self.head(hidden_SE)
        scale, softcap = self.spec.logit_scale, self.spec.logit_softcap
        if scale == 1.0 and softcap is None:
            return logits_SV
        if self.kernels is not None:
            capped_SV: Tensor = self.kernels.cap(logits_SV, scale, softcap)
            return capped_SV
        logits_SV = logits_SV.mul_(scale)
        return logits_SV if softcap is None else logits_SV.div_(softcap).tanh_().mul_(softcap)
