"""Latent attention on GPUs: see `octavo.kernels.latent_attention` for the kernels and the cache's layout.

Nothing here reads from the device, and every launch's grid follows from the number of sequences and tokens. What
decode needs beside its batch is allocated once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch

GROUP = 32  # heads that read a latent together, at most: their weighted latents fill a program's registers
PLAN_UNITS = 16  # of a program that lists them
PREFILL_ROWS = 64  # queries of a program, a group of heads for each token
PARTS = 4  # of all contexts for each multiprocessor


class LatentAttention:
    name = "latent"
    graph_safe = True

    @staticmethod
    def supports(spec: AttentionSpec) -> str | None:
        if spec.sinks:
            return "it has no attention sinks"
        if spec.slopes:
            return "it has no slopes"
        if not spec.latent_dim:
            return "keys and values are no latents"
        if spec.device.type != "cuda":
            return f"it needs a GPU, not {spec.device.type}"
        try:
            import octavo.kernels.latent_attention  # noqa: F401
        except ImportError as error:
            return f"triton is not installed ({error})"
        if spec.num_kv_heads != 1 or set(spec.windows) - {None}:
            return "it knows neither windows nor more latents than one"
        if spec.cache_dtype != spec.dtype:
            return f"it cannot keep latents in {spec.cache_dtype}"
        if spec.latent_dim > 512:
            return f"its latents have at most 512 values, not {spec.latent_dim}"
        return None

    def __init__(self, spec: AttentionSpec, num_blocks: int) -> None:
        self.spec = spec
        device, rope_dim = spec.device, spec.head_dim - spec.latent_dim
        # Rows of the cache that a program reads at a time, and ahead: AMD's processors have 64 KiB for them.
        self.tile, self.stages = (16, 1) if torch.version.hip else (32, 2)
        shape = (spec.num_layers, num_blocks, spec.block_size, spec.head_dim)
        self.latents = torch.zeros(shape, dtype=spec.dtype, device=device)
        # As many groups as it takes, of one size.
        self.groups = next(
            n for n in range(1, spec.num_heads + 1) if spec.num_heads % n == 0 and spec.num_heads // n <= GROUP
        )
        self.group = spec.num_heads // self.groups
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        self.parts = PARTS * processors
        self._units = torch.zeros((self._count(spec.max_num_seqs) + PLAN_UNITS, 8), dtype=torch.int32, device=device)
        # Contexts of more than one part have at least 1.5 shares, so no more than 4/3 parts for each share.
        places = self.parts * 4 // 3 + self.groups
        self._partial = torch.empty((places, self.group, spec.latent_dim), dtype=torch.float32, device=device)
        self._weight = torch.empty((places, self.group), dtype=torch.float32, device=device)
        self._counter = torch.zeros(spec.max_num_seqs * self.groups, dtype=torch.int32, device=device)
        self._shape = {
            "BLOCK_SIZE": spec.block_size,
            "GROUPS": self.groups,
            "GROUP": self.group,
            "RANK": spec.latent_dim,
            "RANK_P2": max(16, _power_of_two(spec.latent_dim)),
            "ROPE": rope_dim,
            "ROPE_P2": max(16, _power_of_two(rope_dim)),
            "TILE": self.tile,
        }

    def _count(self, sequences: int) -> int:
        """Units that decode can have for that many sequences, whatever their lengths are."""
        return sequences * self.groups + self.parts

    def plan(self, batch: ForwardBatch) -> None:
        if not batch.num_single:
            return
        from octavo.kernels.paged_attention_decode import plan_kernel

        assert batch.num_single <= self.spec.max_num_seqs
        plan_kernel[(-(-self._count(batch.num_single) // PLAN_UNITS),)](
            batch.context_lens_N,
            self._units,
            batch.num_single,
            WINDOW=0,
            KV_HEADS=self.groups,
            TILE=self.tile,
            TARGET=self.parts,
            LEAST=2,
            SEQUENCES_P2=max(16, _power_of_two(batch.num_single)),
            UNITS=PLAN_UNITS,
        )

    def cache(self, layer: int) -> tuple[Tensor]:
        return (self.latents[layer],)

    def write(self, layer: int, k_TKD: Tensor, v_TKD: Tensor, batch: ForwardBatch) -> None:
        from octavo.kernels.latent_attention import write_latent_kernel

        write_latent_kernel[(len(batch.slots_T),)](
            k_TKD,
            batch.slots_T,
            self.latents[layer],
            k_TKD.stride(0),
            WIDTH=self.spec.head_dim,
            WIDTH_P2=_power_of_two(self.spec.head_dim),
        )

    def attend(self, layer: int, q_THD: Tensor, batch: ForwardBatch, options: AttendOptions) -> Tensor:
        assert q_THD.stride(1) == self.spec.head_dim, "heads of a token must be contiguous"
        assert options.window is None and options.softcap is None
        out_THR = q_THD.new_empty(*q_THD.shape[:2], self.spec.latent_dim)
        scale = options.scale * math.log2(math.e)
        if batch.num_single:
            self._decode(layer, q_THD, out_THR, batch, scale)
        if batch.num_single < len(batch.context_lens_N):
            self._prefill(layer, q_THD, out_THR, batch, scale)
        return out_THR.flatten(1)

    def _decode(self, layer: int, q_THD: Tensor, out_THR: Tensor, batch: ForwardBatch, scale: float) -> None:
        from octavo.kernels.latent_attention import latent_decode_kernel

        latent_decode_kernel[(self._count(batch.num_single),)](
            q_THD,
            out_THR,
            self._partial,
            self._weight,
            self._counter,
            self._units,
            batch.block_table_NB,
            self.latents[layer],
            q_THD.stride(0),
            batch.block_table_NB.stride(0),
            scale,
            GROUP_P2=max(16, _power_of_two(self.group)),
            num_warps=4 if self.group <= 16 else 8,
            num_stages=self.stages,
            **self._shape,
        )

    def _prefill(self, layer: int, q_THD: Tensor, out_THR: Tensor, batch: ForwardBatch, scale: float) -> None:
        from octavo.kernels.latent_attention import latent_prefill_kernel

        first = batch.num_single
        count = len(batch.context_lens_N) - first
        tiles = (len(q_THD) - first) // (PREFILL_ROWS // self.group) + count
        latent_prefill_kernel[(self.groups, tiles)](
            q_THD,
            out_THR,
            batch.query_start_N1[first:],
            batch.context_lens_N[first:],
            batch.block_table_NB[first:],
            self.latents[layer],
            count,
            q_THD.stride(0),
            batch.block_table_NB.stride(0),
            scale,
            M=PREFILL_ROWS,
            num_warps=8,
            num_stages=self.stages,
            **self._shape,
        )

    def poison(self, blocks_P: Tensor) -> None:
        self.latents[:, blocks_P] = torch.nan

    def copy_blocks(self, src_P: Tensor, dst_P: Tensor) -> None:
        self.latents[:, dst_P] = self.latents[:, src_P]


def _power_of_two(value: int) -> int:
    """The smallest that is not below."""
    return 1 << (value - 1).bit_length()
