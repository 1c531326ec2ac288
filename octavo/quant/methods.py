"""How a product with a quantised matrix is computed: methods behind one protocol, the first that can is taken.

A scheme that no method serves on a CPU is decoded when it is loaded, and computed like any other matrix: decoding it
in each step would cost more than reading what was saved. On a GPU, `Decoding` keeps memory at the quantised size.

Legend: T tokens, N rows (out), K columns (in), G groups of a row.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo import kernels
from octavo.kernels.codes import CodeMatrix, Rounding, RowCodes
from octavo.kernels.cpu_int4 import PackedInt4
from octavo.kernels.cpu_int8 import PackedInt8
from octavo.quant.schemes import Float8, Integers, Scheme

SHARED_BYTES = 200 << 10  # that a program must be able to have for our kernels of codes: Hopper's 227 KiB are enough
BLOCK = 128
MANY_ROWS = 32  # of x, from which on decoding a matrix first is faster than our kernel for any shape


class LinearMethod(Protocol):
    """Made of a scheme once all its rows are there; it may keep them in another form."""

    name: str
    nbytes: int

    @staticmethod
    def supports(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> str | None:
        """None if it can, else the reason why not."""

    def __init__(self, scheme: Scheme, dtype: torch.dtype) -> None: ...

    def rounding(self, tokens: int) -> Rounding | None:
        """How so many rows of x are rounded before the product, where a kernel before it may as well do it."""
        return None

    def __call__(self, x_TK: Tensor) -> Tensor:
        """x W^T, [T, N], in the type of x."""

    def of_codes(self, x: RowCodes) -> Tensor:
        """Likewise, of rows that have been rounded as `rounding` says."""
        raise AssertionError("no rows are rounded for this method")


class Int4OnCpu(LinearMethod):
    """Groups of 4 bits as torch packs them; scales and offsets are rounded to the model's type."""

    name = "int4 on CPU"

    @staticmethod
    def supports(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> str | None:
        if not isinstance(scheme, Integers) or scheme.bits != 4 or scheme.offset_NG is None:
            return "the weights are not 4-bit integers"
        if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float32):
            return "it is for bfloat16 and float32 on a CPU"
        if scheme.order_K is not None or scheme.group not in (32, 64, 128, 256):
            return "groups must be neighbours of 32, 64, 128 or 256"
        if scheme.dynamic or scheme.input_scale is not None:
            return "activations are to be rounded"
        rows, columns = scheme.shape
        return None if rows % 16 == 0 and columns % 64 == 0 else f"{rows} x {columns} is not made of tiles of 16 x 64"

    def __init__(self, scheme: Scheme, dtype: torch.dtype) -> None:
        assert isinstance(scheme, Integers) and scheme.offset_NG is not None
        middle_NG = scheme.offset_NG + 8 * scheme.scale_NG  # torch's codes are -8 to 7
        self.packed = PackedInt4(scheme.codes(), scheme.scale_NG, middle_NG, dtype)
        self.nbytes = self.packed.nbytes

    def __call__(self, x_TK: Tensor) -> Tensor:
        return self.packed(x_TK)


class Int8(LinearMethod):
    """Rows of int8 times rows of x that are rounded to int8: sums are exact integers."""

    name = "int8 x int8"

    @staticmethod
    def supports(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> str | None:
        return _rows_of_int8(scheme) if device.type == "cpu" else "it is for a CPU"

    def __init__(self, scheme: Scheme, dtype: torch.dtype) -> None:
        assert isinstance(scheme, Integers)
        self.packed = PackedInt8(scheme.code_NP, scheme.scale_NG[:, 0])
        self.input_scale = scheme.input_scale
        self.nbytes = scheme.nbytes

    def __call__(self, x_TK: Tensor) -> Tensor:
        if self.input_scale is None:
            scale_T1 = x_TK.abs().amax(1, keepdim=True).float().mul_(1 / 127).clamp_(min=1e-12)
            code_TK = x_TK.div(scale_T1).round_()
        else:
            scale_T1 = self.input_scale
            code_TK = x_TK.float().div(scale_T1).round_().clamp_(-127, 127)
        return self.packed(code_TK).mul_(scale_T1).to(x_TK.dtype)


class Codes(LinearMethod):
    """Our own kernels: what is read is codes, and activations are not rounded, or to 16 bits."""

    name = "codes in Triton"

    @staticmethod
    def supports(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> str | None:
        if not isinstance(scheme, Integers | Float8):
            return "the weights are neither integers nor float8"
        if device.type != "cuda":
            return "it needs a GPU"
        if kernels.elementwise_for(device) is None:
            return "triton is not installed"
        if isinstance(scheme, Float8) and _capability(device) < (8, 9):
            return "the device does not know float8"
        least = 32 if isinstance(scheme, Integers) and scheme.bits == 4 else 16  # tensor cores want 16 of each half
        return None if scheme.group % least == 0 else f"groups of {scheme.group} columns are no multiples of {least}"

    def __init__(self, scheme: Scheme, dtype: torch.dtype) -> None:
        from octavo.kernels import quant_linear

        assert isinstance(scheme, Integers | Float8)
        self.many = quant_linear
        self.order_K: Tensor | None = None
        if isinstance(scheme, Integers):
            self.codes = CodeMatrix.of(scheme.code_NP, scheme.scale_NG, scheme.offset_NG)
            self.order_K = scheme.order_K
        else:
            self.codes = CodeMatrix.of(scheme.code_NK, scheme.scale_NG, None)
        self.few = FewRows(self.codes)
        self.nbytes = self.codes.nbytes + (0 if self.order_K is None else self.order_K.nbytes)
        self.pair = Rounding("fp8" if self.codes.kind == "fp8" else "int8", pair=True, summed=self.codes.summed)

    def rounding(self, tokens: int) -> Rounding | None:
        return self.pair if self.order_K is None and self.few.form(tokens, self.pair) is not None else None

    def of_codes(self, x: RowCodes) -> Tensor:
        return self.few(x, self.pair)

    def __call__(self, x_TK: Tensor) -> Tensor:
        if self.order_K is not None:
            x_TK = x_TK.index_select(1, self.order_K)
        if self.few.form(len(x_TK), self.pair) is not None:
            return self.few(self.few.round_rows(x_TK, self.pair), self.pair)
        if x_TK.dtype != torch.float32 and self.few.form(len(x_TK), None) is not None:
            return self.few(x_TK.contiguous(), None)
        if len(x_TK) > MANY_ROWS:
            return F.linear(x_TK, self.many.decode(self.codes, x_TK.dtype))
        return self.many.quant_linear(x_TK, self.codes)


class FewRows:
    """Rows times a matrix in codes: `octavo.kernels.skinny_codes`, where it can and is faster than others."""

    def __init__(self, codes: CodeMatrix) -> None:
        from octavo.kernels import row_codes, skinny_codes

        self.kernels, self.round_rows = skinny_codes, row_codes.round_rows
        self.codes = codes
        device = codes.code_NP.device
        self.serves = _roomy(device)
        self.processors = torch.cuda.get_device_properties(device).multi_processor_count if self.serves else 1
        self.chained = self.serves and _capability(device) >= (9, 0)

    def form(self, tokens: int, rounding: Rounding | None) -> Any:
        """How to compute it for rows that are rounded so, or not at all; None: not here."""
        if not self.serves:
            return None
        if rounding is None:
            return self.kernels.choose_for_floats(tokens, self.codes, self.processors)
        if rounding.group and tokens > 64:  # each has a scale in each step: torch's product is no slower
            return None
        return self.kernels.choose(tokens, rounding.parts, self.codes, self.processors)

    def __call__(self, x: RowCodes | Tensor, rounding: Rounding | None) -> Tensor:
        form = self.form(len(x), rounding)
        assert form is not None
        y: Tensor = self.kernels.skinny_codes(x, self.codes, form=form, chained=self.chained)
        return y


class RoundedProduct(LinearMethod):
    """8 bits by 8 bits on tensor cores, with a scale for each row of x and of W: few rows on our kernel for them."""

    def __init__(self, scheme: Scheme, dtype: torch.dtype) -> None:
        assert isinstance(scheme, Integers | Float8)
        integers = isinstance(scheme, Integers)
        code_NK = scheme.code_NP if isinstance(scheme, Integers) else scheme.code_NK
        self.codes = CodeMatrix.of(code_NK, scheme.scale_NG, None)
        self.rounded = Rounding("int8" if integers else "fp8", scale=scheme.input_scale)
        self.nbytes = scheme.nbytes
        self.few = FewRows(self.codes)

    def rounding(self, tokens: int) -> Rounding | None:
        return self.rounded

    def __call__(self, x_TK: Tensor) -> Tensor:
        return self.of_codes(self.few.round_rows(x_TK, self.rounded))

    def of_codes(self, x: RowCodes) -> Tensor:
        return self.few(x, self.rounded) if self.few.form(len(x), self.rounded) is not None else self.of_many(x)

    def of_many(self, x: RowCodes) -> Tensor:
        raise NotImplementedError


class ScaledProduct(RoundedProduct):
    """Many rows through torch's product of float8."""

    name = "fp8 on tensor cores"

    @staticmethod
    def supports(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> str | None:
        if not isinstance(scheme, Float8) or scheme.scale_NG.shape[1] != 1:
            return "the weights are not float8 with a scale a row"
        if not scheme.dynamic and scheme.input_scale is None:
            return "activations are not to be rounded"
        if dtype != torch.bfloat16:
            return "results are bfloat16"
        if any(size % 16 for size in scheme.shape):
            return "sizes must be multiples of 16"
        if kernels.elementwise_for(device) is None:
            return "it needs a GPU and triton"
        return None if _capability(device) >= (9, 0) else "the device has no such product"

    def __init__(self, scheme: Scheme, dtype: torch.dtype) -> None:
        super().__init__(scheme, dtype)
        self.scale_1N = self.codes.scale_GN.float()

    def of_many(self, x: RowCodes) -> Tensor:
        return torch._scaled_mm(
            x.code_MPE[:, 0],
            self.codes.code_NP.t(),
            x.scale_M[:, None],
            self.scale_1N,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,  # sums of 14 bits within a tile of K: what every server does, at a tenth less time
        )


class Int8Product(RoundedProduct):
    """Many rows through our kernel."""

    name = "int8 on tensor cores"

    @staticmethod
    def supports(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> str | None:
        if (reason := _rows_of_int8(scheme)) is not None:
            return reason
        if any(size % 16 for size in scheme.shape):
            return "sizes must be multiples of 16"
        if kernels.elementwise_for(device) is None:
            return "it needs a GPU and triton"
        return None if _roomy(device) else "the device has too little shared memory"

    def of_many(self, x: RowCodes) -> Tensor:
        from octavo.kernels import many_codes

        form = many_codes.choose(len(x), len(self.codes.code_NP), self.few.processors)
        return many_codes.many_codes(x, self.codes, form=form)


class ScaledBlocks(RoundedProduct):
    """Float8 with a scale for each block of 128 x 128, and of 1 x 128 of x: many rows through torch's product.
    (The sums of 128 columns have to be scaled while tensor cores go on, which CUTLASS's kernels do and Triton's do not:
    others measured 1000 TFLOP/s and 400 on an H100.)"""

    name = "fp8 blocks on tensor cores"

    @staticmethod
    def supports(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> str | None:
        if not isinstance(scheme, Float8) or scheme.group != BLOCK or scheme.shape[0] % BLOCK:
            return "the weights are not float8 in blocks of 128 x 128"
        if not scheme.dynamic:
            return "activations are not to be rounded"
        if dtype != torch.bfloat16:
            return "results are bfloat16"
        if kernels.elementwise_for(device) is None:
            return "it needs a GPU and triton"
        if _capability(device) != (9, 0) or _cuda() < (12, 9):
            return "the product is there on Hopper, from CUDA 12.9 on"
        scale_BBG = scheme.scale_NG.view(-1, BLOCK, scheme.scale_NG.shape[1])
        return None if bool((scale_BBG == scale_BBG[:, :1]).all()) else "scales differ within 128 rows"

    def __init__(self, scheme: Scheme, dtype: torch.dtype) -> None:
        super().__init__(scheme, dtype)
        self.rounded = Rounding("fp8", group=BLOCK)
        assert isinstance(scheme, Float8)
        scale_BG = scheme.scale_NG[::BLOCK]
        self.scale_GB = F.pad(scale_BG, (0, -scale_BG.shape[1] % 4)).t()  # columns begin at multiples of 16 bytes
        self.nbytes = self.codes.nbytes + self.scale_GB.nbytes

    def of_many(self, x: RowCodes) -> Tensor:
        code_TK, scale_TG = x.held()
        y_TN: Tensor = F.scaled_mm(
            code_TK,
            self.codes.code_NP.t(),
            scale_TG,
            F.ScalingType.BlockWise1x128,
            self.scale_GB,
            F.ScalingType.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )
        return y_TN[: len(x)]


class Decoding(LinearMethod):
    """The reference: decodes the matrix in each step, and multiplies in the model's type."""

    name = "decoding in each step"

    @staticmethod
    def supports(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> str | None:
        return "decoding once is faster" if device.type == "cpu" else None

    def __init__(self, scheme: Scheme, dtype: torch.dtype) -> None:
        self.scheme = scheme
        self.nbytes = scheme.nbytes

    def __call__(self, x_TK: Tensor) -> Tensor:
        return F.linear(x_TK, self.scheme.dequantize(x_TK.dtype))


_METHODS: tuple[type[LinearMethod], ...] = (Int4OnCpu, Int8, ScaledProduct, Int8Product, ScaledBlocks, Codes, Decoding)


def select_method(
    scheme: Scheme, dtype: torch.dtype, device: torch.device
) -> tuple[type[LinearMethod] | None, list[str]]:
    """What computes with a scheme here (None: decode it once), and why those before it do not."""
    reasons: list[str] = []
    if scheme.kind == "plain":
        return None, ["it is not quantised"]
    for method in _METHODS:
        reason = method.supports(scheme, dtype, device)
        if reason is None:
            return method, reasons
        reasons.append(f"{method.name}: {reason}")
    return None, reasons


def _rows_of_int8(scheme: Scheme) -> str | None:
    if not isinstance(scheme, Integers) or scheme.bits != 8 or scheme.scale_NG.shape[1] != 1:
        return "the weights are not int8 with a scale a row"
    if not scheme.dynamic and scheme.input_scale is None:
        return "activations are not to be rounded"
    return None if scheme.offset_NG is None and scheme.order_K is None else "the weights have zero points"


@cache
def _roomy(device: torch.device) -> bool:
    """Whether programs can have the shared memory that kernels of codes ask for."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 0) >= SHARED_BYTES


def _cuda() -> tuple[int, ...]:
    """The version that torch was built with; () without."""
    return tuple(int(part) for part in (torch.version.cuda or "").split(".") if part)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
