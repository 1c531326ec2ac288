"""Compiles the kernels of experts for GPUs that are not here. Run by test_compile.py, without the interpreter."""

from __future__ import annotations

import sys

import triton
from triton.compiler import ASTSource

from octavo.kernels import moe_experts, moe_route
from octavo.kernels.moe_codes import PLAIN
from octavo.moe.forms import Pairs, Tiles
from tests.kernels.compile_all import NVIDIA, TARGETS

ROUTE = {
    "X": 256, "X_P2": 256, "GROUPS": 8, "GROUPS_P2": 8, "SIZE_P2": 32, "KEPT": 4, "BEST": 2, "K": 8, "K_P2": 8,
    "SCORE": "sigmoid", "RENORMALIZE": True, "BIAS": True, "ALIGN": True, "ROWS": 16, "PAIRS": 256,
}  # fmt: skip
GATED = {"K": 8, "IN": 2048, "OUT": 768, "ACTIVATION": "silu", "INTERLEAVED": False, "BIAS": False}
OSS = {"K": 4, "IN": 2880, "OUT": 2880, "ACTIVATION": "clamped", "INTERLEAVED": True, "BIAS": True}
GATE = {name: OSS[name] for name in ("OUT", "ACTIVATION", "INTERLEAVED", "BIAS")} | {"X": 32, "X_P2": 32, "BLOCK": 1024}
COMBINE = {"K": 8, "SIZE": 2048, "BLOCK": 1024, "SORTED": True, "BIAS": True, "SHARED": True}
PAIRS, FEW, MANY = Pairs(), Tiles(16), Tiles(64, rows=128, block=64, warps=8)
DOWN = {"K": 8, "IN": 768, "OUT": 2048, "BIAS": False}


def pairs(form: Pairs) -> dict[str, int]:
    return {"R": form.rows, "BLOCK": form.block, "STAGES": form.stages}


def tiles(form: Tiles) -> dict[str, int]:
    return {"M": form.tile, "R": form.rows, "BLOCK": form.block, "STAGES": form.stages}


BYTES: dict[str, object] = {"SAME": False, "LAYOUT": 0, "PTX": True, "OFFSET": False, "TOTAL": 128 * 1536}
HALVES = BYTES | {"LAYOUT": 128, "SAME": True}
ROWS = BYTES | {"CODE": "fp8", "GROUP": 0, "SPAN": 2048}
BLOCKS = BYTES | {"CODE": "fp8", "GROUP": 128, "SPAN": 128}
INT8 = BYTES | {"CODE": "int8", "GROUP": 0, "SPAN": 2048}
INT4 = HALVES | {"CODE": "int4", "GROUP": 128, "SPAN": 64, "OFFSET": True}
MXFP4 = HALVES | {"CODE": "mxfp4", "LAYOUT": 64, "GROUP": 32, "SPAN": 32, "SAME": False}
MIDDLE = Tiles(128, rows=64, block=128, warps=8, stages=3)

# Kernel, constants, warps, and targets if not all.
KERNELS = [
    (moe_route.route_kernel, ROUTE, 1),
    (moe_experts.gate_up_pairs_kernel, GATED | pairs(PAIRS), 4),
    (moe_experts.gate_up_pairs_kernel, OSS | pairs(PAIRS), 4, NVIDIA[1:2]),
    (moe_experts.down_pairs_kernel, DOWN | pairs(PAIRS) | {"SHARED": True}, 4),
    (moe_experts.tiles_kernel, GATED | tiles(FEW) | {"DOWN": False}, 4, NVIDIA[1:]),
    (moe_experts.tiles_kernel, GATED | DOWN | tiles(FEW) | {"DOWN": True}, 4, NVIDIA[1:2]),
    (moe_experts.tiles_kernel, OSS | tiles(MANY) | {"DOWN": False}, 8, NVIDIA[1:2]),
    (moe_experts.tiles_kernel, GATED | tiles(Tiles(16, 16, 32, stages=1)) | {"DOWN": False}, 4),
    *((moe_experts.gate_up_pairs_kernel, GATED | pairs(PAIRS) | c, 4, NVIDIA[1:]) for c in (ROWS, BLOCKS)),
    *((moe_experts.gate_up_pairs_kernel, GATED | pairs(PAIRS) | c, 4) for c in (INT8, INT4, MXFP4)),
    (moe_experts.down_pairs_kernel, DOWN | pairs(PAIRS) | BLOCKS | {"SHARED": True}, 4, NVIDIA[1:2]),
    (moe_experts.down_pairs_kernel, DOWN | pairs(PAIRS) | INT4 | {"SHARED": True}, 4, NVIDIA[1:2]),
    *((moe_experts.tiles_kernel, GATED | tiles(FEW) | c | {"DOWN": False}, 4, NVIDIA[1:2]) for c in (ROWS, BLOCKS)),
    *((moe_experts.tiles_kernel, GATED | tiles(MIDDLE) | c | {"DOWN": False}, 8, NVIDIA[1:2]) for c in (INT8, INT4)),
    (moe_experts.tiles_kernel, OSS | tiles(MIDDLE) | MXFP4 | {"DOWN": False}, 8, NVIDIA[1:2]),
    (moe_experts.tiles_kernel, GATED | DOWN | tiles(FEW) | INT4 | {"DOWN": True}, 4, NVIDIA),
    (moe_experts.gather_kernel, {"K": 8, "SIZE": 2048, "BLOCK": 1024}, 4),
    (
        moe_experts.gate_kernel,
        {k: OSS[k] for k in OSS if k not in ("K", "IN")} | {"X": 32, "X_P2": 32, "BLOCK": 1024},
        4,
    ),
    (
        moe_experts.combine_kernel,
        {"K": 8, "SIZE": 2048, "BLOCK": 1024, "SORTED": True, "BIAS": True, "SHARED": True},
        4,
    ),
]
INTEGERS = {"experts_ptr", "ranks_ptr", "counts_ptr", "starts_ptr", "ends_ptr", "tiles_ptr", "order_ptr"}
TYPES = {
    "weights_ptr": "*fp32",
    "tokens": "i32",
    "tiles": "i32",
    "scale": "fp32",
    "jitter": "fp32",
    "alpha": "fp32",
    "limit": "fp32",
}


CODES = {"fp8": "*fp8e4nv", "int8": "*i8", "int4": "*u8", "mxfp4": "*u8"}


def kind(name: str, code: object) -> str:
    if name == "weight_ptr" and code in CODES:
        return CODES[str(code)]
    if name == "scale_ptr":
        return "*u8" if code == "mxfp4" else "*fp16"
    if name == "offset_ptr":
        return "*i8"
    return "*i32" if name in INTEGERS else TYPES.get(name, "*bf16")


def main() -> None:
    for kernel, constants, warps, *targets in KERNELS:
        names = kernel.arg_names
        for target in targets[0] if targets else TARGETS:
            chained = target in NVIDIA[1:]
            values = constants | {"CHAINED": chained}
            if "weight_ptr" in names:
                values = PLAIN | values
                absent = ("scale_ptr", "offset_ptr") if values["CODE"] == "plain" else ("offset_ptr",)
                values |= {} if values["OFFSET"] else dict.fromkeys(absent)
                values["PTX"] = values["PTX"] and target in NVIDIA
            signature = {name: "constexpr" if name in values else kind(name, values.get("CODE")) for name in names}
            aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"}
            source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in values.items()}, aligned)
            options = {"num_warps": warps, "num_stages": 3, "enable_fp_fusion": True}
            built = triton.compile(source, target=target, options=options | ({"launch_pdl": True} if chained else {}))
            binary = built.asm["cubin" if target.backend == "cuda" else "hsaco"]
            assert len(binary) > 1000
            # What a multiprocessor of each target has for one program.
            most = {80: 163, 90: 227, 100: 227}.get(target.arch, 64) << 10
            assert built.metadata.shared <= most, (kernel.__name__, target, built.metadata.shared)
            print(kernel.__name__, target.arch, built.metadata.shared, flush=True)
            if len(sys.argv) > 1:
                path = f"{sys.argv[1]}/{kernel.__name__}-{len(binary)}-{target.arch}.bin"
                with open(path, "wb") as file:
                    file.write(binary)


if __name__ == "__main__":
    main()
