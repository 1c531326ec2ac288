"""Linear layers. A fused one is several matrices of a checkpoint that share their input, computed as one product."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo import kernels
from octavo.kernels.codes import Rounding, RowCodes
from octavo.kernels.cpu_linear import PackedLinear, pack_linear
from octavo.layers.norm import Norm, RMSNorm
from octavo.quant.methods import LinearMethod, select_method
from octavo.quant.schemes import Scheme, join


class Linear:
    """y = x W^T + b, with W as [out, in] like in the checkpoint until `finish`.

    On a GPU few rows of x go through kernels of our own (`octavo.kernels.skinny_linear`), where they are faster.
    The weight gets its memory when it is first asked for. `defer` says that it never will be: then `put` brings the
    rows of W as schemes of octavo.quant, and `finish` chooses how to compute with them.
    """

    __slots__ = ("bias", "many_rows", "methods", "on", "packed", "rows", "shape", "skinny", "weight")
    weight: Tensor

    def __init__(self, in_size: int, out_size: int, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = (out_size, in_size)
        self.on = (dtype, device)
        self.methods: list[LinearMethod] = []
        self.rows: dict[int, Scheme] | None = None  # by the first row of each
        self.bias = torch.zeros(out_size, dtype=dtype, device=device) if bias else None
        self.packed: PackedLinear | None = None
        self.many_rows = False  # x has hundreds, always
        self.skinny: ModuleType | None = kernels.skinny_for(device)

    def __getattr__(self, name: str) -> Any:
        if name != "weight":
            raise AttributeError(name)
        self.weight = torch.empty(self.shape, dtype=self.on[0], device=self.on[1])
        return self.weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.methods:
            return self.quantised(x)
        if self.packed is not None:
            return self.packed(x, self.bias)
        if (found := self.skinny_config(x)) is not None:
            skinny, config = found
            y: Tensor = skinny.skinny_linear(x, self.weight, self.bias, config=config, chained=True)
            return y
        return F.linear(x, self.weight, self.bias)

    def rounding(self, tokens: int) -> Rounding | None:
        """How the layer rounds so many rows, if a kernel before it may do it in passing: then comes `of_codes`."""
        return self.methods[0].rounding(tokens) if len(self.methods) == 1 else None

    def of_codes(self, x: RowCodes) -> Tensor:
        y_TF = self.methods[0].of_codes(x)
        return y_TF if self.bias is None else y_TF.add_(self.bias)

    def after(self, norm: Norm, x_TE: Tensor, stream_TE: Tensor | None) -> tuple[Tensor, Tensor]:
        """(y of the norm of the stream that grows by x, stream): `norm(x, stream)` and the product, perhaps as one."""
        found = self.fused_after(norm, x_TE, stream_TE, silu=False)
        if found is not None:
            return found
        rounding = self.rounding(len(x_TE))
        if rounding is not None and isinstance(norm, RMSNorm):
            codes, stream_TE = norm.rounded(x_TE, stream_TE, rounding)
            return self.of_codes(codes), stream_TE
        x_TE, stream_TE = norm(x_TE, stream_TE)
        return self(x_TE), stream_TE

    def fused_after(
        self, norm: Norm, x_TE: Tensor, stream_TE: Tensor | None, silu: bool
    ) -> tuple[Tensor, Tensor] | None:
        """`after` in a kernel for few rows, if there is one. With `silu` the rows of W are gate over up, and y is
        silu(gate) * up."""
        found = self.skinny_config(x_TE)
        if found is None or not isinstance(norm, RMSNorm) or norm.scale != 1.0 or norm.wide:
            return None
        skinny, config = found
        weights = (norm.weight_E, norm.eps, norm.wide)
        fused: tuple[Tensor, Tensor] = skinny.norm_linear(
            x_TE, stream_TE, weights, self.weight, self.bias, config=config, silu=silu, chained=True
        )
        return fused

    def skinny_config(self, x: Tensor) -> tuple[ModuleType, Any] | None:
        """The kernels for few rows and how to launch them, if they are to be used for x."""
        if self.skinny is None:
            return None
        config = self.skinny.use_skinny(len(x), *self.weight.shape, x.dtype, x.device)
        return None if config is None else (self.skinny, config)

    def quantised(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        parts = [method(flat) for method in self.methods]
        y = (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).view(*x.shape[:-1], -1)
        return y if self.bias is None else y.add_(self.bias)

    def defer(self) -> None:
        """The weight becomes a shape without memory, which still tells rows apart in `names`."""
        self.weight = torch.empty(self.shape, dtype=self.on[0], device="meta")
        self.rows = {}

    def put(self, row: int, scheme: Scheme) -> None:
        """The rows of W from `row` on."""
        assert self.rows is not None and scheme.shape[1] == self.shape[1]
        self.rows[row] = scheme

    @property
    def num_bytes(self) -> int:
        """Of a deferred weight, in the form that it is computed with; known after `finish`."""
        if self.methods:
            return sum(method.nbytes for method in self.methods)
        return self.shape[0] * self.shape[1] * self.on[0].itemsize

    def finish(self) -> None:
        """Once the weight is loaded. Where another layout is faster, it takes the weight's place; methods that are
        there already stay."""
        if self.methods:
            return
        if self.rows is not None:
            schemes = join([self.rows[row] for row in sorted(self.rows)])
            self.rows = {}
            chosen = [select_method(scheme, *self.on)[0] for scheme in schemes]
            methods = [
                method(scheme, self.on[0]) for method, scheme in zip(chosen, schemes, strict=True) if method is not None
            ]
            if len(methods) == len(schemes):
                self.methods, self.skinny = methods, None
                return
            self.weight = torch.cat([scheme.dequantize(self.on[0]) for scheme in schemes])
        self.packed = pack_linear(self.weight, self.many_rows)
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
