"""Root mean square norms. The mean is taken in float32 whatever the dtype of the input."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo import kernels

MANY = 1 << 17  # values of a stream from which a CPU is slow at rms_norm


class RMSNorm:
    """`norm(x, residual)` is one step of a residual stream: the stream grows by x, and its norm is what comes next.

    Returns (norm of the stream, stream). Either argument may be overwritten; without a residual the stream begins
    with x.
    """

    __slots__ = ("eps", "kernels", "mirror", "mirror_size", "size", "weight_E")

    def __init__(self, size: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        weight_F = torch.zeros(2 * size, dtype=dtype, device=device)  # F = 2 E
        self.weight_E = weight_F[:size].fill_(1.0)
        self.mirror = weight_F if device.type == "cpu" else None
        self.mirror_size = (2 * size,)
        self.size = (size,)
        self.eps = eps
        self.kernels = kernels.elementwise_for(device)

    def __call__(self, x_TE: Tensor, residual_TE: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.kernels is not None:
            fused: tuple[Tensor, Tensor] = self.kernels.add_rms_norm(x_TE, residual_TE, self.weight_E, self.eps)
            return fused
        stream_TE = x_TE if residual_TE is None else x_TE.add_(residual_TE)
        if self.mirror is not None and len(stream_TE) == 1:
            # On a CPU rms_norm is eight small operations (12 us), layer_norm is one. The layer norm of a vector and
            # its negative side by side is the vector's RMS norm, as their mean is zero: 6 us in all, for one token.
            both_TF = torch.cat((stream_TE, -stream_TE), -1)
            normed_TF = torch.layer_norm(both_TF, self.mirror_size, self.mirror, None, self.eps)
            return normed_TF[:, : self.size[0]], stream_TE
        if self.mirror is not None and stream_TE.numel() > MANY:
            # Step by step as the formula has it: at 2,048 x 256 in bfloat16 a quarter of rms_norm's time.
            wide_TE = stream_TE.float()
            scale_T1 = wide_TE.square().mean(-1, keepdim=True).add_(self.eps).rsqrt_()
            return (wide_TE * scale_T1).to(stream_TE.dtype).mul_(self.weight_E), stream_TE
        return torch.rms_norm(stream_TE, self.size, self.weight_E, self.eps), stream_TE

    def names(self, path: str) -> dict[str, Tensor]:
        return {f"{path}.weight": self.weight_E}


class QKNorm:
    """Norm of each query and key head over its own size, for both at once: J = H + K heads, queries first."""

    __slots__ = ("eps", "k_D", "num_heads", "num_kv_heads", "q_D", "size", "weight_JD")

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.q_D = torch.ones(head_dim, dtype=dtype, device=device)
        self.k_D = torch.ones(head_dim, dtype=dtype, device=device)
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.size = (head_dim,)
        self.eps = eps
        self.finish()

    def finish(self) -> None:
        self.weight_JD = torch.cat((self.q_D.expand(self.num_heads, -1), self.k_D.expand(self.num_kv_heads, -1)))

    def __call__(self, qk_TJD: Tensor) -> Tensor:
        return torch.rms_norm(qk_TJD, self.size, None, self.eps).mul_(self.weight_JD)

    def names(self, q_path: str, k_path: str) -> dict[str, Tensor]:
        return {f"{q_path}.weight": self.q_D, f"{k_path}.weight": self.k_D}
