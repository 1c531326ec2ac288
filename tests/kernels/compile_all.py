"""Compiles every Triton kernel for GPUs that are not here. Run by test_compile.py, without the interpreter.

Prints a line a kernel and target: name, target, registers spilled (where the target tells).
"""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from octavo.kernels import paged_attention as paged

TARGETS = [
    GPUTarget("cuda", 80, 32),
    GPUTarget("cuda", 90, 32),
    GPUTarget("cuda", 100, 32),
    GPUTarget("hip", "gfx942", 64),
    GPUTarget("hip", "gfx1100", 32),
]
# Of Llama-3-8B.
SHAPE = {
    "WINDOW": 0, "BLOCK_SIZE": 16, "KV_HEADS": 8, "GROUP": 4, "HEAD_DIM": 128, "DIM_P2": 128,
}  # fmt: skip
KERNELS = [
    (paged.write_kv_kernel, {"WIDTH": 1024, "WIDTH_P2": 1024}, 4),
    (paged.decode_kernel, SHAPE | {"GROUP_P2": 16, "SPLITS": 8, "TILE": 64}, 4),
    (paged.decode_kernel, SHAPE | {"GROUP_P2": 16, "SPLITS": 1, "TILE": 64}, 4),
    (paged.reduce_kernel, {"HEAD_DIM": 128, "DIM_P2": 128, "SPLITS": 8, "SPLITS_P2": 8}, 2),
    (paged.prefill_kernel, SHAPE | {"M": 128, "TILE": 64}, 8),
]
TYPES = {
    "slots_ptr": "*i64", "context_ptr": "*i32", "table_ptr": "*i32", "start_ptr": "*i32", "partial_ptr": "*fp32",
    "weight_ptr": "*fp32", "scale_log2e": "fp32",
}  # fmt: skip


def kind(name: str) -> str:
    return TYPES.get(name, "*bf16" if name.endswith("_ptr") else "i32")


def main() -> None:
    for kernel, constants, warps in KERNELS:
        for target in TARGETS:
            signature = {name: "constexpr" if name in constants else kind(name) for name in kernel.arg_names}
            # Pointers and strides are multiples of 16 in use, which decides how wide the loads are.
            aligned = {
                (i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n][0] == "*"
            }
            source = ASTSource(
                kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}, aligned
            )
            stages = 3 if kernel is paged.decode_kernel else 2
            built = triton.compile(
                source, target=target, options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
            )
            binary = built.asm["cubin" if target.backend == "cuda" else "hsaco"]
            assert len(binary) > 1000
            print(kernel.__name__, target.backend, target.arch, len(binary), flush=True)


if __name__ == "__main__":
    main()
