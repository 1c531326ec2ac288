"""Norms. Sums are taken in float32 whatever the dtype of the input.

`norm(x, residual)` is one step of a residual stream: the stream grows by `scale` * x, and its norm is what comes
next. Returns (norm of the stream, stream). Either argument may be overwritten; without a residual the stream begins
with x. `norm.add(x, stream)` is the other order: the stream grows by the norm of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo import kernels
from octavo.kernels.codes import Rounding, RowCodes

MANY = 1 << 17  # values of a stream from which a CPU is slow at rms_norm


class RMSNorm:
    """Root mean square norm. `wide`: it is rounded once, when it is weighted; else before that too.

    `offset` is added to the weights (Gemma's are stored less one); `plain`: a checkpoint has none.
    """

    __slots__ = ("eps", "kernels", "mirror", "mirror_size", "offset", "plain", "scale", "size", "weight_E", "wide")

    def __init__(
        self,
        size: int,
        eps: float,
        dtype: torch.dtype,
        device: torch.device,
        *,
        wide: bool = False,
        offset: float = 0.0,
        plain: bool = False,
        scale: float = 1.0,
    ) -> None:
        self.size = (size,)
        self.plain = plain
        self.mirror_size = (2 * size,)
        self.eps = eps
        self.wide = wide
        self.offset = offset
        self.scale = scale
        self.kernels = kernels.elementwise_for(device)
        self.weight_E = torch.full(self.size, 1.0 - offset, dtype=dtype, device=device)
        self.mirror: Tensor | None = None

    def finish(self) -> None:
        weight_E = self.weight_E.float() + self.offset if self.wide else self.weight_E
        if weight_E.device.type == "cpu":
            self.mirror = torch.cat((weight_E, torch.zeros_like(weight_E)))
            weight_E = self.mirror[: self.size[0]]
        self.weight_E = weight_E

    def __call__(self, x_TE: Tensor, residual_TE: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.kernels is not None:
            fused: tuple[Tensor, Tensor] = self.kernels.add_rms_norm(
                x_TE, residual_TE, self.weight_E, self.eps, self.scale, self.wide
            )
            return fused
        stream_TE = x_TE if residual_TE is None else residual_TE.add_(x_TE, alpha=self.scale)
        return self.norm(stream_TE), stream_TE

    def rounded(self, x_TE: Tensor, residual_TE: Tensor | None, rounding: Rounding) -> tuple[RowCodes, Tensor]:
        """Likewise, with the norm in codes; on a GPU."""
        assert self.kernels is not None
        fused: tuple[RowCodes, Tensor] = self.kernels.add_rms_norm_codes(
            x_TE, residual_TE, self.weight_E, self.eps, self.scale, self.wide, rounding
        )
        return fused

    def add(self, x_TE: Tensor, stream_TE: Tensor) -> Tensor:
        if self.kernels is not None:
            fused: Tensor = self.kernels.rms_norm_add(x_TE, stream_TE, self.weight_E, self.eps, self.scale, self.wide)
            return fused
        return stream_TE.add_(self.norm(x_TE), alpha=self.scale)

    def add_and(self, x_TE: Tensor, stream_TE: Tensor, following: RMSNorm) -> tuple[Tensor, Tensor]:
        """`following(self.add(x, stream))` at once; it must be of the same kind."""
        if self.kernels is not None:
            fused: tuple[Tensor, Tensor] = self.kernels.rms_norm_add_rms_norm(
                x_TE, stream_TE, self.weight_E, following.weight_E, self.eps, self.scale, self.wide
            )
            return fused
        return following(self.add(x_TE, stream_TE))

    def norm(self, x_TE: Tensor) -> Tensor:
        """Of each row, in torch."""
        if self.mirror is not None and len(x_TE) == 1:
            # On a CPU rms_norm is eight small operations (12 us), layer_norm is one. The layer norm of a vector and
            # its negative side by side is the vector's RMS norm, as their mean is zero: 6 us in all, for one token.
            both_TF = torch.cat((x_TE, -x_TE), -1)  # F = 2 E
            return torch.layer_norm(both_TF, self.mirror_size, self.mirror, None, self.eps)[:, : self.size[0]]
        if x_TE.dtype == self.weight_E.dtype and x_TE.numel() <= MANY:
            return torch.rms_norm(x_TE, self.size, self.weight_E, self.eps)
        # Step by step as the formula has it: on a CPU, at 2,048 x 256 in bfloat16, a quarter of rms_norm's time.
        wide_TE = x_TE.float()
        wide_TE = wide_TE * wide_TE.square().mean(-1, keepdim=True).add_(self.eps).rsqrt_()
        if self.wide:
            return wide_TE.mul_(self.weight_E).to(x_TE.dtype)
        return wide_TE.to(x_TE.dtype).mul_(self.weight_E)

    def names(self, path: str) -> dict[str, Tensor]:
        return {} if self.plain else {f"{path}.weight": self.weight_E}


class NoNorm:
    """In the place of a norm where a family has none."""

    __slots__ = ()

    def finish(self) -> None:
        """Nothing."""

    def __call__(self, x_TE: Tensor, residual_TE: Tensor | None = None) -> tuple[Tensor, Tensor]:
        stream_TE = x_TE if residual_TE is None else residual_TE.add_(x_TE)
        return stream_TE, stream_TE

    def names(self, path: str) -> dict[str, Tensor]:
        return {}


class LayerNorm:
    """The mean is taken away too. It is rounded once, at the end.

    `offset` is added to the weights; `plain`: a checkpoint has none.
    """

    __slots__ = ("bias_E", "eps", "kernels", "offset", "plain", "scale", "size", "weight_E")

    def __init__(
        self,
        size: int,
        eps: float,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        *,
        offset: float = 0.0,
        plain: bool = False,
        scale: float = 1.0,
    ) -> None:
        self.size = (size,)
        self.eps = eps
        self.offset = offset
        self.plain = plain
        self.scale = scale
        self.kernels = kernels.elementwise_for(device)
        self.weight_E = torch.full(self.size, 1.0 - offset, dtype=dtype, device=device)
        self.bias_E = torch.zeros(size, dtype=dtype, device=device) if bias else None

    def finish(self) -> None:
        if self.offset:
            self.weight_E = self.weight_E + self.offset

    def __call__(self, x_TE: Tensor, residual_TE: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.kernels is not None:
            fused: tuple[Tensor, Tensor] = self.kernels.add_layer_norm(
                x_TE, residual_TE, self.weight_E, self.bias_E, self.eps, self.scale
            )
            return fused
        stream_TE = x_TE if residual_TE is None else residual_TE.add_(x_TE, alpha=self.scale)
        return torch.layer_norm(stream_TE, self.size, self.weight_E, self.bias_E, self.eps), stream_TE

    def names(self, path: str) -> dict[str, Tensor]:
        found = {} if self.plain else {f"{path}.weight": self.weight_E}
        return found if self.bias_E is None else found | {f"{path}.bias": self.bias_E}


Norm = RMSNorm | LayerNorm | NoNorm
