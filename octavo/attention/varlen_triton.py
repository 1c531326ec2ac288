"""Attention over whole prompts on a GPU: see `octavo.kernels.varlen_attention`. Nothing is planned or kept."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch

MAX_GROUP = 64  # query heads of a key/value head


class TritonVarlen:
    name = "triton, whole prompts"
    graph_safe = False

    @staticmethod
    def supports(spec: AttentionSpec) -> str | None:
        if spec.device.type != "cuda":
            return f"it needs a GPU, not {spec.device.type}"
        try:
            import octavo.kernels.varlen_attention  # noqa: F401
        except ImportError as error:
            return f"triton is not installed ({error})"
        if spec.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"it cannot compute in {spec.dtype}"
        if spec.latent_dim:
            return "it cannot read latents"
        if spec.sinks or spec.slopes or spec.chunked:
            return "it knows no sinks, slopes or chunks"
        if spec.head_dim > 256:
            return f"its heads have at most 256 values, not {spec.head_dim}"
        if spec.num_heads // spec.num_kv_heads > MAX_GROUP:
            return f"at most {MAX_GROUP} query heads share a key/value head"
        return None

    def __init__(self, spec: AttentionSpec, num_blocks: int = 0) -> None:
        from octavo.kernels.varlen_attention import varlen_attention

        self.spec = spec
        self._attention = varlen_attention

    def plan(self, batch: ForwardBatch) -> None:
        """Programs find their sequences themselves."""

    def cache(self, layer: int) -> None:
        """There is none."""

    def write(self, layer: int, k_TKD: Tensor, v_TKD: Tensor, batch: ForwardBatch) -> None:
        batch.plan = (k_TKD, v_TKD)

    def attend(self, layer: int, q_THD: Tensor, batch: ForwardBatch, options: AttendOptions) -> Tensor:
        (k_TKD, v_TKD), batch.plan = batch.plan, None
        found: Tensor = self._attention(
            q_THD, k_TKD, v_TKD, batch.query_start_N1, options.scale, options.causal, options.window, options.softcap
        )
        return found

    def poison(self, blocks_P: Tensor) -> None:
        """There are no blocks."""

    def copy_blocks(self, src_P: Tensor, dst_P: Tensor) -> None:
        """Likewise."""
