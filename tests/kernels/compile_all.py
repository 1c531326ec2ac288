"""Compiles every Triton kernel for GPUs that are not here. Run by test_compile.py, without the interpreter.

Prints a line a kernel and target: name, target, registers spilled (where the target tells).
"""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from octavo.kernels import paged_attention_hopper as hopper
from octavo.kernels.elementwise import gate_kernel, norm_kernel, rotate_and_write_kernel
from octavo.kernels.latent_attention import (
    latent_decode_kernel,
    latent_prefill_kernel,
    turn_and_write_kernel,
    write_latent_kernel,
)
from octavo.kernels.many_codes import many_codes_kernel
from octavo.kernels.paged_attention import write_kv_kernel
from octavo.kernels.paged_attention_decode import decode_kernel, plan_kernel
from octavo.kernels.paged_attention_prefill import prefill_kernel
from octavo.kernels.varlen_attention import varlen_kernel

TARGETS = [
    GPUTarget("cuda", 80, 32),
    GPUTarget("cuda", 90, 32),
    GPUTarget("cuda", 100, 32),
    GPUTarget("hip", "gfx942", 64),
    GPUTarget("hip", "gfx1100", 32),
]
# Of Llama-3-8B.
SHAPE = {
    "WINDOW": 0, "CAPPED": False, "SINKS": True, "SLOPED": True, "SCALED": False, "WIDE": False,
    "BLOCK_SIZE": 16, "KV_HEADS": 8, "GROUP": 4, "HEAD_DIM": 128, "DIM_P2": 128,
}  # fmt: skip
CAPPED = {
    "WINDOW": 4096, "CAPPED": True, "SINKS": False, "SLOPED": False, "SCALED": True, "WIDE": True,
    "BLOCK_SIZE": 16, "KV_HEADS": 4, "GROUP": 2, "HEAD_DIM": 40, "DIM_P2": 64,
}  # fmt: skip
HOPPER = {"BLOCK_SIZE": 16, "KV_HEADS": 8, "GROUP": 4, "HEAD_DIM": 128, "TILE": 64, "STAGES": 4}
PLAN = {
    "WINDOW": 4096, "KV_HEADS": 8, "TILE": 64, "TARGET": 1056, "LEAST": 8, "SEQUENCES_P2": 1024, "UNITS": 16,
}  # fmt: skip
NORM = {
    "ADD": False, "AFTER": True, "NEXT": True, "CENTER": True, "BIAS": True, "WIDE": False, "SIZE_P2": 4096,
    "ROUND": False, "INTEGER": False, "PAIR": False, "STATIC": False, "GROUP": 0, "SUMMED": 0,
}  # fmt: skip
ROTATE = {
    "NORM": True, "LATE": False, "WIDE": True, "HEADS": 8, "KV_HEADS": 4, "HEAD_DIM": 256, "DIM_P2": 256, "HALF": 128,
    "INTERLEAVED": True, "BLOCK": 8, "BLOCK_SIZE": 16,
}  # fmt: skip
LATENT = {
    "BLOCK_SIZE": 16, "GROUPS": 1, "GROUP": 16, "RANK": 512, "RANK_P2": 512, "ROPE": 64, "ROPE_P2": 64, "TILE": 32,
}  # fmt: skip
FP8 = {"QUANTISED": True, "LARGEST": 448.0, "INTEGER": False}
INT8 = {"QUANTISED": True, "LARGEST": 127.0, "INTEGER": True}
WRITE = {"BLOCK_SIZE": 16, "KV_HEADS": 8, "HEAD_DIM": 128, "HEADS_P2": 8, "DIM_P2": 128}
TURN = {
    "HEADS": 16, "NOPE": 128, "RANK": 512, "RANK_P2": 512, "ROPE": 64, "ROPE_P2": 64, "INTERLEAVED": True, "BLOCK": 16,
}  # fmt: skip
MANY = {"K": 4096, "ROWS": 128, "OUTPUTS": 256, "BLOCK": 128, "BAND": 8}
VARLEN = {"KV_HEADS": 8, "GROUP": 4, "HEAD_DIM": 128, "DIM_P2": 128, "M": 64, "TILE": 64}
NVIDIA, AMD = TARGETS[:3], TARGETS[3:]
# Kernel, constants, warps, stages, and targets if not all: large kernels take long to compile for AMD.
KERNELS = [
    (write_kv_kernel, WRITE | FP8, 4, 1, NVIDIA[1:]),
    (write_kv_kernel, WRITE | INT8, 4, 1),
    (plan_kernel, PLAN, 4, 1),
    (decode_kernel, SHAPE | {"GROUP_P2": 16, "TILE": 64}, 4, 3, NVIDIA),
    (decode_kernel, CAPPED | {"GROUP_P2": 16, "TILE": 32}, 4, 3, AMD),
    (prefill_kernel, SHAPE | {"M": 128, "TILE": 64}, 8, 2, NVIDIA),
    (prefill_kernel, CAPPED | {"M": 64, "TILE": 32}, 4, 2, AMD),
    (write_latent_kernel, {"WIDTH": 576, "WIDTH_P2": 1024}, 4, 1),
    (turn_and_write_kernel, TURN, 4, 1),
    (latent_decode_kernel, LATENT | {"GROUP_P2": 16}, 4, 2, NVIDIA),
    (latent_decode_kernel, LATENT | {"GROUP_P2": 16, "TILE": 16}, 4, 1, AMD),
    (latent_prefill_kernel, LATENT | {"M": 64}, 8, 2, NVIDIA),
    (latent_prefill_kernel, LATENT | {"M": 64, "TILE": 16}, 8, 1, AMD),
    (norm_kernel, NORM, 8, 1),
    (norm_kernel, NORM | {"AFTER": False, "NEXT": False, "ROUND": True, "INTEGER": True, "PAIR": True}, 8, 1),
    (rotate_and_write_kernel, ROTATE | INT8, 4, 1),
    (rotate_and_write_kernel, ROTATE | FP8 | {"LATE": True}, 4, 1, NVIDIA[1:]),
    (gate_kernel, {"ACTIVATION": "gelu", "BLOCK": 1024}, 4, 1),
    (many_codes_kernel, MANY, 8, 4, NVIDIA[1:]),
    (varlen_kernel, VARLEN | {"CAUSAL": True, "WINDOW": 0, "CAPPED": False}, 4, 2, NVIDIA),
    (varlen_kernel, VARLEN | {"CAUSAL": False, "WINDOW": 65, "CAPPED": True, "TILE": 32}, 4, 1, AMD),
]
TYPES = {
    "slots_ptr": "*i64", "context_ptr": "*i32", "table_ptr": "*i32", "start_ptr": "*i32", "partial_ptr": "*fp32",
    "weight_ptr": "*fp32", "counter_ptr": "*i32", "units_ptr": "*i32", "scale": "fp32", "softcap": "fp32",
    "slopes_ptr": "*fp32", "k_scale": "fp32", "v_scale": "fp32", "positions_ptr": "*i64", "eps": "fp32",
    "next_weight_ptr": "*fp32", "code_ptr": "*i8", "code_scale_ptr": "*fp32",
    "x_desc": "tensordesc<i8[128, 128]>", "code_desc": "tensordesc<i8[256, 128]>",
    "out_desc": "tensordesc<bf16[128, 256]>", "x_scale_ptr": "*fp32",
}  # fmt: skip


def kind(name: str, constants) -> str:
    if name in ("key_cache_ptr", "value_cache_ptr") and (constants.get("SCALED") or constants.get("QUANTISED")):
        return "*i8" if constants.get("INTEGER", True) else "*fp8e4nv"
    if name == "scale_ptr" and (constants.get("SCALED") or "QUANTISED" in constants):
        return "*i32" if "SCALED" in constants else "*fp16"
    if name.endswith("_desc") and name not in TYPES:
        return f"tensordesc<bf16[16, 64],{hopper.box_layout!r}>"
    return TYPES.get(name, "*bf16" if name.endswith("_ptr") else "i32")


def build(make_source, kernel, constants, target, **options) -> None:
    signature = {name: "constexpr" if name in constants else kind(name, constants) for name in kernel.arg_names}
    # Pointers and strides are multiples of 16 in use, which decides how wide the loads are.
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n][0] == "*"}
    source = make_source(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}, aligned)
    built = triton.compile(source, target=target, options=options)
    binary = built.asm["cubin" if target.backend == "cuda" else "hsaco"]
    assert len(binary) > 1000
    print(kernel.__name__, target.backend, target.arch, len(binary), flush=True)


def main() -> None:
    for kernel, constants, warps, stages, *targets in KERNELS:
        for target in targets[0] if targets else TARGETS:
            options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
            if "CHAINED" in kernel.arg_names:
                chained = target in NVIDIA[1:]
                constants = constants | {"CHAINED": chained}
                options |= {"launch_pdl": True} if chained else {}
            build(ASTSource, kernel, constants, target, **options)
    build(GluonASTSource, hopper.prefill_kernel, HOPPER, GPUTarget("cuda", 90, 32), num_warps=4, maxnreg=168)


if __name__ == "__main__":
    main()
