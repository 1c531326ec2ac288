"""Paged attention in Triton: see `octavo.kernels.paged_attention` for the kernels and the cache's layout.

`plan` and `run` never read from the device, and every launch's grid follows from the number of sequences and tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch

MAX_SPLITS = 32  # parts of one context; a longer one gets longer parts
PROGRAMS_PER_SM = 4  # of decode, so that the memory system has enough loads in flight
DECODE_TILE = 64  # tokens read at a time
PREFILL_ROWS = 128  # rows of queries of a program, a group of heads for each token


class TritonAttention:
    name = "triton"
    graph_safe = True

    @staticmethod
    def supports(spec: AttentionSpec) -> str | None:
        if spec.device.type != "cuda":
            return f"it needs a GPU, not {spec.device.type}"
        try:
            import octavo.kernels.paged_attention  # noqa: F401
        except ImportError as error:
            return f"triton is not installed ({error})"
        if spec.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"it cannot compute in {spec.dtype}"
        if spec.head_dim > 256:
            return f"its heads have at most 256 values, not {spec.head_dim}"
        if spec.num_heads // spec.num_kv_heads > PREFILL_ROWS:
            return f"at most {PREFILL_ROWS} query heads share a key/value head"
        return None

    def __init__(self, spec: AttentionSpec, num_blocks: int) -> None:
        self.spec = spec
        shape = (spec.num_layers, num_blocks, spec.block_size, spec.num_kv_heads, spec.head_dim)
        self.keys = torch.zeros(shape, dtype=spec.dtype, device=spec.device)
        self.values = torch.zeros(shape, dtype=spec.dtype, device=spec.device)
        self.num_sms = 1
        if spec.device.type == "cuda":
            self.num_sms = torch.cuda.get_device_properties(spec.device).multi_processor_count
        self._partial = torch.empty(0, dtype=torch.float32, device=spec.device)

    def plan(self, batch: ForwardBatch) -> None:
        """Nothing is shared between layers that the kernels do not find themselves."""

    def cache(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.keys[layer], self.values[layer]

    def attend(self, layer: int, q_THD: Tensor, batch: ForwardBatch, options: AttendOptions) -> Tensor:
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
        scale_log2e = options.scale * math.log2(math.e)
        if batch.num_single:
            self._decode(layer, q_THD, out_THD, batch, scale_log2e, options.window)
        if batch.num_single < len(batch.context_lens_N):
            self._prefill(layer, q_THD, out_THD, batch, scale_log2e, options.window)
        return out_THD.flatten(1)

    def copy_blocks(self, src_P: Tensor, dst_P: Tensor) -> None:
        for cache in (self.keys, self.values):
            cache[:, dst_P] = cache[:, src_P]

    def write(self, layer: int, k_TKD: Tensor, v_TKD: Tensor, batch: ForwardBatch) -> None:
        from octavo.kernels.paged_attention import write_kv_kernel

        width = self.spec.num_kv_heads * self.spec.head_dim
        assert k_TKD.stride(1) == v_TKD.stride(1) == self.spec.head_dim, "heads of a token must be contiguous"
        write_kv_kernel[(len(batch.slots_T),)](
            k_TKD,
            v_TKD,
            batch.slots_T,
            self.keys[layer],
            self.values[layer],
            k_TKD.stride(0),
            v_TKD.stride(0),
            WIDTH=width,
            WIDTH_P2=_power_of_two(width),
        )

    def _decode(
        self, layer: int, q_THD: Tensor, out_THD: Tensor, batch: ForwardBatch, scale: float, window: int | None
    ) -> None:
        from octavo.kernels.paged_attention import decode_kernel, reduce_kernel

        spec, count = self.spec, batch.num_single
        splits = min(MAX_SPLITS, max(1, PROGRAMS_PER_SM * self.num_sms // (count * spec.num_kv_heads)))
        partial, weight = self._workspace(count, splits)
        decode_kernel[(count, spec.num_kv_heads, splits)](
            q_THD,
            out_THD,
            partial,
            weight,
            batch.context_lens_N,
            batch.block_table_NB,
            self.keys[layer],
            self.values[layer],
            q_THD.stride(0),
            batch.block_table_NB.stride(0),
            scale,
            GROUP_P2=max(16, _power_of_two(spec.num_heads // spec.num_kv_heads)),
            SPLITS=splits,
            TILE=DECODE_TILE,
            num_warps=4,
            num_stages=3,
            **self._shape(window),
        )
        if splits > 1:
            reduce_kernel[(count * spec.num_heads,)](
                partial,
                weight,
                out_THD,
                HEAD_DIM=spec.head_dim,
                DIM_P2=_power_of_two(spec.head_dim),
                SPLITS=splits,
                SPLITS_P2=_power_of_two(splits),
                num_warps=2,
            )

    def _prefill(
        self, layer: int, q_THD: Tensor, out_THD: Tensor, batch: ForwardBatch, scale: float, window: int | None
    ) -> None:
        from octavo.kernels.paged_attention import prefill_kernel

        spec, first = self.spec, batch.num_single
        count = len(batch.context_lens_N) - first
        rows = PREFILL_ROWS if spec.head_dim <= 128 and spec.dtype != torch.float32 else PREFILL_ROWS // 2
        rows = max(rows, _power_of_two(spec.num_heads // spec.num_kv_heads))
        tokens = rows // (spec.num_heads // spec.num_kv_heads)
        prefill_kernel[((len(q_THD) - first) // tokens + count, spec.num_kv_heads)](
            q_THD,
            out_THD,
            batch.query_start_N1[first:],
            batch.context_lens_N[first:],
            batch.block_table_NB[first:],
            self.keys[layer],
            self.values[layer],
            count,
            q_THD.stride(0),
            batch.block_table_NB.stride(0),
            scale,
            M=rows,
            TILE=64 if spec.dtype != torch.float32 else 32,
            num_warps=8 if rows == PREFILL_ROWS else 4,
            num_stages=2,
            **self._shape(window),
        )

    def _shape(self, window: int | None) -> dict[str, int]:
        spec = self.spec
        return {
            "WINDOW": window or 0,
            "BLOCK_SIZE": spec.block_size,
            "KV_HEADS": spec.num_kv_heads,
            "GROUP": spec.num_heads // spec.num_kv_heads,
            "HEAD_DIM": spec.head_dim,
            "DIM_P2": max(16, _power_of_two(spec.head_dim)),
        }

    def _workspace(self, count: int, splits: int) -> tuple[Tensor, Tensor]:
        """Partial values and weights of a decode; the same memory for all layers and steps."""
        heads = count * self.spec.num_heads * splits
        size = heads * (self.spec.head_dim + 1)
        if len(self._partial) < size:
            self._partial = torch.empty(size, dtype=torch.float32, device=self.spec.device)
        return self._partial[heads:], self._partial[:heads]


def _power_of_two(value: int) -> int:
    """The smallest that is not below."""
    return 1 << (value - 1).bit_length()
