"""Linear layers. A fused one is several matrices of a checkpoint that share their input, computed as one product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.kernels.cpu_linear import PackedLinear, pack_linear


class Linear:
    """y = x W^T + b, with W as [out, in] like in the checkpoint until `finish`."""

    __slots__ = ("bias", "packed", "weight")

    def __init__(self, in_size: int, out_size: int, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(out_size, in_size, dtype=dtype, device=device)
        self.bias = torch.zeros(out_size, dtype=dtype, device=device) if bias else None
        self.packed: PackedLinear | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return self.packed(x, self.bias)
        return F.linear(x, self.weight, self.bias)

    def finish(self) -> None:
        """Once the weight is loaded. Where another layout is faster, it takes the weight's place."""
        self.packed = pack_linear(self.weight)
        if self.packed is not None:
            self.weight = self.weight.new_empty(0)

    def names(self, *paths: str) -> dict[str, Tensor]:
        (path,) = paths
        found = {f"{path}.weight": self.weight}
        if self.bias is not None:
            found[f"{path}.bias"] = self.bias
        return found


class MergedLinear(Linear):
    """Linears of one input, one below the other: `names` takes a path for each."""

    __slots__ = ("sizes",)

    def __init__(
        self, in_size: int, sizes: tuple[int, ...], bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(in_size, sum(sizes), bias, dtype, device)
        self.sizes = sizes

    def names(self, *paths: str) -> dict[str, Tensor]:
        found = {
            f"{path}.weight": part for path, part in zip(paths, self.weight.split_with_sizes(self.sizes), strict=True)
        }
        if self.bias is not None:
            found |= {
                f"{path}.bias": part for path, part in zip(paths, self.bias.split_with_sizes(self.sizes), strict=True)
            }
        return found


class QKVLinear(MergedLinear):
    """Queries, keys and values of a token: [T, (H + K + K) * D], heads in the checkpoint's order."""

    __slots__ = ()

    def __init__(
        self,
        in_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        kv_size = num_kv_heads * head_dim
        super().__init__(in_size, (num_heads * head_dim, kv_size, kv_size), bias, dtype, device)
