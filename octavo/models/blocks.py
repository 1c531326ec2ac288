"""Layers of a decoder: in which order attention and feed-forward are normed and added to the residual stream.

A layer takes (x, stream) and gives (x, stream): what its part before computed, not yet added, and the stream that it
is to be added to (None: x is the stream). So one kernel does the addition and the norm that follows.
`norm(x, stream)` and `norm.add(x, stream)` are explained in `octavo.layers.norm`.

Legend: T tokens of the step, E hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from octavo.attention.base import ForwardBatch
from octavo.layers.attention import Attention, Rotations
from octavo.layers.latent import LatentAttention
from octavo.layers.linear import Linear
from octavo.layers.norm import LayerNorm, Norm, RMSNorm


class Feedforward(Protocol):
    """`names` gets the paths of a layer's parts; see `Decoder.paths`.

    `after(norm, x, stream)` gives (this of the norm of the stream that grows by x, stream).
    """

    def __call__(self, x_TE: Tensor) -> Tensor: ...
    def after(self, norm: Norm, x_TE: Tensor, stream_TE: Tensor | None) -> tuple[Tensor, Tensor]: ...
    def finish(self) -> None: ...
    def linears(self) -> tuple[Linear, ...]: ...
    def names(self, at: Mapping[str, str]) -> dict[str, Tensor]: ...


class Block:
    """What all kinds of layers share. A subclass says which norms it has, and in `__call__` what comes when."""

    __slots__ = ("attention", "mlp", "norms")
    parts: ClassVar[tuple[str, ...]]  # names of its norms, which are attributes too

    def __init__(self, make_norm: Callable[[], Norm], attention: Attention | LatentAttention, mlp: Feedforward) -> None:
        self.attention = attention
        self.mlp = mlp
        self.norms = {part: make_norm() for part in self.parts}
        for part, norm in self.norms.items():
            setattr(self, part, norm)

    def __call__(
        self, x_TE: Tensor, stream_TE: Tensor | None, rotations: Rotations, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def finish(self) -> None:
        for part in (*self.norms.values(), self.attention, self.mlp):
            part.finish()

    def linears(self) -> tuple[Linear, ...]:
        """Whose weights may be quantised."""
        return self.attention.linears() + self.mlp.linears()

    def names(self, at: Mapping[str, str]) -> dict[str, Tensor]:
        found = self.attention.names(at) | self.mlp.names(at)
        for part, norm in self.norms.items():
            found |= norm.names(at[part])
        return found


class PreNorm(Block):
    """Llama's: x += attention(norm(x)); x += mlp(norm(x))."""

    __slots__ = ("attention_in", "mlp_in")
    parts = __slots__
    attention_in: Norm
    mlp_in: Norm

    def __call__(
        self, x_TE: Tensor, stream_TE: Tensor | None, rotations: Rotations, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        qkv, stream_TE = self.attention.qkv.after(self.attention_in, x_TE, stream_TE)
        x_TE = self.attention.mix(qkv, rotations, batch)
        return self.mlp.after(self.mlp_in, x_TE, stream_TE)


class Sandwich(Block):
    """Gemma 2's: x += norm(attention(norm(x))); x += norm(mlp(norm(x)))."""

    __slots__ = ("attention_in", "attention_out", "mlp_in", "mlp_out")
    parts = __slots__
    attention_in: RMSNorm
    attention_out: RMSNorm
    mlp_in: RMSNorm
    mlp_out: RMSNorm

    def __call__(
        self, x_TE: Tensor, stream_TE: Tensor | None, rotations: Rotations, batch: ForwardBatch
    ) -> tuple[Tensor, None]:
        qkv, stream_TE = self.attention.qkv.after(self.attention_in, x_TE, stream_TE)
        x_TE = self.attention.mix(qkv, rotations, batch)
        x_TE, stream_TE = self.attention_out.add_and(x_TE, stream_TE, self.mlp_in)
        return self.mlp_out.add(self.mlp(x_TE), stream_TE), None


class PostNorm(Block):
    """OLMo 2's: x += norm(attention(x)); x += norm(mlp(x))."""

    __slots__ = ("attention_out", "mlp_out")
    parts = __slots__
    attention_out: RMSNorm
    mlp_out: RMSNorm

    def __call__(
        self, x_TE: Tensor, stream_TE: Tensor | None, rotations: Rotations, batch: ForwardBatch
    ) -> tuple[Tensor, None]:
        assert stream_TE is None, "what comes before has been added"
        x_TE = self.attention_out.add(self.attention(x_TE, rotations, batch), x_TE)
        return self.mlp_out.add(self.mlp(x_TE), x_TE), None


class NormedSum(Block):
    """BERT's: x = norm(x + attention(x)); x = norm(x + mlp(x))."""

    __slots__ = ("attention_out", "mlp_out")
    parts = __slots__
    attention_out: LayerNorm
    mlp_out: LayerNorm

    def __call__(
        self, x_TE: Tensor, stream_TE: Tensor | None, rotations: Rotations, batch: ForwardBatch
    ) -> tuple[Tensor, None]:
        assert stream_TE is None, "what comes before has been added"
        x_TE, _ = self.attention_out(self.attention(x_TE, rotations, batch), x_TE)
        return self.mlp_out(self.mlp(x_TE), x_TE)[0], None


class Parallel(Block):
    """Cohere's: x += attention(norm(x)) + mlp(norm(x)), with one norm."""

    __slots__ = ("attention_in",)
    parts = __slots__
    attention_in: Norm

    def __call__(
        self, x_TE: Tensor, stream_TE: Tensor | None, rotations: Rotations, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        x_TE, stream_TE = self.attention_in(x_TE, stream_TE)
        return self.attention(x_TE, rotations, batch).add_(self.mlp(x_TE)), stream_TE


class ParallelNorms(Block):
    """GPT-NeoX's: x += attention(norm(x)) + mlp(norm(x)), with a norm for each."""

    __slots__ = ("attention_in", "mlp_in")
    parts = __slots__
    attention_in: Norm
    mlp_in: Norm

    def __call__(
        self, x_TE: Tensor, stream_TE: Tensor | None, rotations: Rotations, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        x_TE, stream_TE = self.attention_in(x_TE, stream_TE)
        attended_TE = self.attention(x_TE, rotations, batch)
        return attended_TE.add_(self.mlp(self.mlp_in(stream_TE)[0])), stream_TE
