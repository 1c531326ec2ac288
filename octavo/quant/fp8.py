"""FP8 checkpoints (quant_method fp8, fbgemm_fp8): e4m3 weights with a scale a matrix, a row, or a block of 128 x 128.

DeepSeek V3 and Qwen3-FP8 store blocks' scales as `weight_scale_inv`, which they multiply by, whatever the name says.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from octavo.quant.formats import Options, Parts
from octavo.quant.schemes import E4M3, Float8


class Fp8:
    def __init__(self, config: Options) -> None:
        kind = config.text("fmt", "e4m3")
        if kind not in ("e4m3", "float8_e4m3fn"):
            raise config.error("fmt", f"must be e4m3, got {kind!r:.80}")
        scheme = config.text("activation_scheme", "dynamic")
        if scheme not in ("dynamic", "static"):
            raise config.error("activation_scheme", f"must be static or dynamic, got {scheme!r:.80}")
        self.dynamic = scheme == "dynamic"
        self.block: tuple[int, int] | None = None
        block = config.values.get("weight_block_size")
        if block is not None:
            sound = type(block) is list and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
            if not sound:
                raise config.error("weight_block_size", f"must be two positive integers, got {block!r:.80}")
            self.block = (block[0], block[1])

    def read(self, path: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Float8:
        parts = Parts(path, tensors)
        code_NK = parts.take("weight", *shape, dtype=(E4M3,))
        name = "weight_scale_inv" if "weight_scale_inv" in tensors else "weight_scale"
        scale_NG = parts.scales(name, shape, self.block)
        given = parts.scalar("input_scale")
        parts.drop("input_scale_ub")
        parts.done()
        if not self.dynamic and given is None:
            raise parts.error("input_scale is missing, and activation_scheme is static")
        return Float8(code_NK, scale_NG, None if self.dynamic else given, self.dynamic)
