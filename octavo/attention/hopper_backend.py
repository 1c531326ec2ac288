"""The Triton backend with a faster prefill, on NVIDIA's Hopper: see `octavo.kernels.paged_attention_hopper`.

Decode, the cache, short contexts and all that this prefill cannot do (windows, soft caps) are the Triton backend's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch
from octavo.attention.triton_backend import TritonAttention

TILE = 64  # tokens that are read at a time
STAGES = 4  # tiles of keys, and of values, in shared memory
SHORT = 512  # tokens of a context that do not pay for the start of so large a program


class HopperAttention(TritonAttention):
    name = "hopper"

    @staticmethod
    def supports(spec: AttentionSpec) -> str | None:
        reason = TritonAttention.supports(spec)
        if reason is not None:
            return reason
        if torch.version.hip is not None or torch.cuda.get_device_capability(spec.device)[0] != 9:
            return f"it is made for NVIDIA's Hopper, not {torch.cuda.get_device_name(spec.device)}"
        if spec.dtype.itemsize != 2 or spec.cache_dtype != spec.dtype:
            return f"it computes with 16 bits, not {spec.dtype} over a cache of {spec.cache_dtype}"
        if spec.head_dim not in (64, 128):
            return f"its heads have 64 or 128 values, not {spec.head_dim}"
        if spec.block_size not in (8, 16, 32, 64, 128):
            return f"its blocks have 8 to 128 tokens, a power of two, not {spec.block_size}"
        if spec.windows and None not in spec.windows:
            return "all layers have windows"
        if spec.sinks:
            return "it has no attention sinks"
        if spec.slopes:
            return "it has no slopes"
        try:
            import octavo.kernels.paged_attention_hopper  # noqa: F401
        except (ImportError, AttributeError) as error:
            return f"this Triton lacks what it needs ({error})"
        return None

    def __init__(self, spec: AttentionSpec, num_blocks: int) -> None:
        from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

        from octavo.kernels.paged_attention_hopper import COLUMNS, box_layout

        super().__init__(spec, num_blocks)
        box = [spec.block_size, COLUMNS.value]
        width = spec.num_kv_heads * spec.head_dim
        self._boxes = [
            [TensorDescriptor.from_tensor(cache.view(-1, width), box, box_layout) for cache in (keys, values)]
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    def _prefill(self, layer: int, q_THD: Tensor, out_THD: Tensor, batch: ForwardBatch, options: AttendOptions) -> None:
        if batch.max_context_len <= SHORT or options.window is not None or options.softcap is not None:
            super()._prefill(layer, q_THD, out_THD, batch, options)
            return
        from octavo.kernels.paged_attention_hopper import ROWS, prefill_kernel

        spec, first = self.spec, batch.num_single
        count = len(batch.context_lens_N) - first
        tiles = (len(q_THD) - first) // (2 * ROWS.value // self.group) + count
        prefill_kernel[(spec.num_kv_heads, tiles)](
            q_THD,
            out_THD,
            batch.query_start_N1[first:],
            batch.context_lens_N[first:],
            batch.block_table_NB[first:],
            *self._boxes[layer],
            count,
            q_THD.stride(0),
            batch.block_table_NB.stride(0),
            self._factors(options)[0],
            BLOCK_SIZE=spec.block_size,
            KV_HEADS=spec.num_kv_heads,
            GROUP=self.group,
            HEAD_DIM=spec.head_dim,
            TILE=TILE,
            STAGES=STAGES,
            num_warps=4,
            maxnreg=168,
        )
