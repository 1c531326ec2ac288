"""Compiles the sampling kernels for GPUs that are not here. Run by test_sampling.py, without the interpreter."""

from __future__ import annotations

from typing import Any

import triton
from triton.compiler import ASTSource

from octavo.kernels.sampling import choose_kernel, scan_kernel
from octavo.kernels.sampling_logprobs import report_kernel, tally_kernel
from tests.kernels.compile_all import TARGETS

# With everything, for the vocabulary of Llama 3; `choose` with features, which takes longest, once for each maker.
FLAGS = {"V": 128256, "SAMPLED": True, "HAS_TOP_K": True, "GROUP": 16, "TILE": 32}
SIZES = {"BLOCKS_P2": 512, "GROUPS_P2": 8192}
PICKED = {"V": 128256, "PICK_ROWS": True, "GROUP": 16}
KERNELS: list[tuple[Any, dict[str, Any], int]] = [
    (scan_kernel, FLAGS | {"EDITED": True, "SHIFT": 0}, 8),
    (choose_kernel, FLAGS | SIZES | {"EDITED": False, "SHIFT": 16}, 16),
    (choose_kernel, FLAGS | SIZES | {"EDITED": True, "SHIFT": 0}, 16),
    (tally_kernel, PICKED | {"TILE": 8192}, 8),
    (report_kernel, PICKED | {"GROUPS_P2": 8192, "TILES": 16, "TILES_P2": 16, "COLUMNS_P2": 8}, 8),
]
TYPES = {
    "rows_ptr": "*i64", "positions_ptr": "*i64", "reals_ptr": "*fp32", "ints_ptr": "*i64", "maxima_ptr": "*fp32",
    "masses_ptr": "*fp32", "groups_ptr": "*i32", "floor": "fp32", "tokens_ptr": "*i64", "sums_ptr": "*fp32",
    "counts_ptr": "*i32", "logits_ptr": "*bf16", "stride": "i32", "ids_ptr": "*i32", "logprobs_ptr": "*fp32",
    "ranks_ptr": "*i32", "columns": "i32",
}  # fmt: skip


def main() -> None:
    for kernel, constants, warps in KERNELS:
        for target in TARGETS:
            if kernel is choose_kernel and constants["EDITED"] != (target.arch in (90, "gfx942")):
                continue
            names = kernel.arg_names
            signature = {name: "constexpr" if name in constants else TYPES[name] for name in names}
            aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] == "*"}
            values = {(names.index(name),): value for name, value in constants.items()}
            source = ASTSource(kernel, signature, values, aligned)
            built = triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": False})
            assert len(built.asm["cubin" if target.backend == "cuda" else "hsaco"]) > 1000
            print(kernel.__name__, target.arch, flush=True)


if __name__ == "__main__":
    main()
