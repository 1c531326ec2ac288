"""Paged attention in Triton: see `octavo.kernels.paged_attention` for the kernels and the cache's layout.

Nothing here reads from the device, and every launch's grid follows from the number of sequences and tokens. What
decode needs beside its batch is allocated once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch
from octavo.kernels import kv_cache

TILE_BYTES = 16 << 10  # of keys, or values, that a program reads at a time
FEW = 16  # sequences of a decode step that are too few to hide memory's latency from each other
PLAN_UNITS = 16  # of a program that lists them
PREFILL_ROWS = 128  # rows of queries of a program, a group of heads for each token


@dataclass(frozen=True, slots=True)
class DecodeForm:
    """How decode divides contexts, and reads them."""

    parts: int  # that contexts are cut into, if none is short
    least: int  # tiles of a part
    tile: int  # tokens
    warps: int
    stages: int


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
        if spec.cache_dtype not in (spec.dtype, *kv_cache.DTYPES):
            return f"it cannot keep keys and values in {spec.cache_dtype}"
        if spec.cache_dtype == torch.float8_e4m3fn and not _has_fp8(spec.device):
            return "the GPU has no float8_e4m3fn"
        if spec.latent_dim:
            return "its keys and values are apart"
        if spec.head_dim > 256:
            return f"its heads have at most 256 values, not {spec.head_dim}"
        if spec.num_heads // spec.num_kv_heads > PREFILL_ROWS:
            return f"at most {PREFILL_ROWS} query heads share a key/value head"
        return None

    def __init__(self, spec: AttentionSpec, num_blocks: int) -> None:
        self.spec = spec
        shape = (spec.num_layers, num_blocks, spec.block_size, spec.num_kv_heads, spec.head_dim)
        self.keys = torch.zeros(shape, dtype=spec.cache_dtype, device=spec.device)
        self.values = torch.zeros(shape, dtype=spec.cache_dtype, device=spec.device)
        self.caches = [self.keys, self.values]
        if spec.quantised:
            shape = (spec.num_layers, num_blocks, spec.num_kv_heads, spec.block_size, 2)
            self.scales = torch.zeros(shape, dtype=kv_cache.SCALE_DTYPE, device=spec.device)
            self.caches.append(self.scales)
        self.group = spec.num_heads // spec.num_kv_heads
        dim_p2 = max(16, _power_of_two(spec.head_dim))
        self.tile = max(16, min(64, TILE_BYTES // (dim_p2 * spec.dtype.itemsize)))
        self._prefill_form = _prefill_form(spec, dim_p2, self.group, self.tile)
        self._shape = {
            "WIDE": self.keys[0].numel() >= 1 << 31,
            "SCALED": spec.quantised,
            "BLOCK_SIZE": spec.block_size,
            "KV_HEADS": spec.num_kv_heads,
            "GROUP": self.group,
            "HEAD_DIM": spec.head_dim,
            "DIM_P2": dim_p2,
        }
        processors, memory = 1, 0
        if spec.device.type == "cuda":
            properties = torch.cuda.get_device_properties(spec.device)
            processors = properties.multi_processor_count
            memory = getattr(properties, "shared_memory_per_block_optin", 0)
        # The fastest of a sweep on an H200. Few sequences read far ahead, in larger tiles where they fit; many hide
        # memory's latency from each other.
        wide = 2 if memory >= 10 * TILE_BYTES else 1
        few = DecodeForm(parts=processors, least=1, tile=wide * self.tile, warps=4, stages=5)
        many = DecodeForm(parts=4 * processors, least=2, tile=self.tile, warps=2, stages=3)
        self._few = FEW
        if spec.quantised and self.group <= 16:  # what bytes are turned into fills a warp's registers: it works alone
            stages = 6 if wide == 2 else 3
            many = DecodeForm(parts=8 * processors, least=2, tile=max(16, self.tile // 2), warps=1, stages=stages)
            self._few = FEW // 4
        self._allocate(few, many)

    def _allocate(self, few: DecodeForm, many: DecodeForm) -> None:
        """The lists and the workspace of decode."""
        spec, device = self.spec, self.spec.device
        self._forms = (few, many)
        units = max(self._units(self._few), self._units(spec.max_num_seqs)) + PLAN_UNITS
        self._lists = {
            window: torch.zeros((units, 8), dtype=torch.int32, device=device) for window in spec.windows or (None,)
        }
        # Contexts of more than one part have at least 1.5 shares, so no more than 4/3 parts for each share.
        places = max(few.parts, many.parts) * 4 // 3 + spec.num_kv_heads
        self._partial = torch.empty((places, 2, self.group, spec.head_dim), dtype=torch.float32, device=device)
        self._counter = torch.zeros(spec.max_num_seqs * spec.num_kv_heads, dtype=torch.int32, device=device)

    def _window(self, window: int | None) -> int:
        """As the kernels have it: see `first_seen`."""
        return 0 if window is None else -window if self.spec.chunked else window

    def _form(self, sequences: int) -> DecodeForm:
        return self._forms[sequences > self._few]

    def _units(self, sequences: int) -> int:
        """As many as decode can have for that many sequences, whatever their lengths are."""
        return sequences * self.spec.num_kv_heads + self._form(sequences).parts

    def plan(self, batch: ForwardBatch) -> None:
        """Lists the parts of decode's contexts, for all groups alike; nothing else is shared between layers."""
        if not batch.num_single:
            return
        from octavo.kernels.paged_attention_decode import plan_kernel

        assert batch.num_single <= self.spec.max_num_seqs
        form = self._form(batch.num_single)
        for window, units in self._lists.items():
            plan_kernel[(-(-self._units(batch.num_single) // PLAN_UNITS),)](
                batch.context_lens_N,
                units,
                batch.num_single,
                WINDOW=self._window(window),
                KV_HEADS=self.spec.num_kv_heads,
                TILE=form.tile,
                TARGET=form.parts,
                LEAST=form.least,
                SEQUENCES_P2=max(16, _power_of_two(batch.num_single)),
                UNITS=PLAN_UNITS,
            )

    def cache(self, layer: int) -> tuple[Tensor, ...]:
        return tuple(cache[layer] for cache in self.caches)

    def _kept(self, layer: int) -> tuple[Tensor, ...]:
        """What kernels read: keys, values, and words of scales, in whose place something stands if there are none."""
        keys, values = self.keys[layer], self.values[layer]
        return keys, values, self.scales[layer].view(torch.int32) if self.spec.quantised else keys

    def write(self, layer: int, k_TKD: Tensor, v_TKD: Tensor, batch: ForwardBatch) -> None:
        from octavo.kernels.paged_attention import write_kv_kernel

        spec = self.spec
        assert k_TKD.stride(1) == v_TKD.stride(1) == spec.head_dim, "heads of a token must be contiguous"
        write_kv_kernel[(len(batch.slots_T),)](
            k_TKD,
            v_TKD,
            batch.slots_T,
            *self.cache(layer),
            *(() if spec.quantised else (k_TKD,)),
            k_TKD.stride(0),
            v_TKD.stride(0),
            **kv_cache.constants(spec.cache_dtype),
            BLOCK_SIZE=spec.block_size,
            KV_HEADS=spec.num_kv_heads,
            HEAD_DIM=spec.head_dim,
            HEADS_P2=_power_of_two(spec.num_kv_heads),
            DIM_P2=self._shape["DIM_P2"],
        )

    def attend(self, layer: int, q_THD: Tensor, batch: ForwardBatch, options: AttendOptions) -> Tensor:
        assert q_THD.stride(1) == self.spec.head_dim, "heads of a token must be contiguous"
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
        if batch.num_single:
            self._decode(layer, q_THD, out_THD, batch, options)
        if batch.num_single < len(batch.context_lens_N):
            self._prefill(layer, q_THD, out_THD, batch, options)
        return out_THD.flatten(1)

    def poison(self, blocks_P: Tensor) -> None:
        for cache in self.caches:
            cache.view(torch.uint8)[:, blocks_P] = 0xFF  # no number, in each type that has such

    def copy_blocks(self, src_P: Tensor, dst_P: Tensor) -> None:
        for cache in self.caches:
            blocks = cache.view(torch.uint8)  # torch cannot index all types
            blocks[:, dst_P] = blocks[:, src_P]

    @staticmethod
    def _factors(options: AttendOptions) -> tuple[float, float]:
        """What a score is multiplied with, so that exponents are of base two; the soft cap likewise.

        With a soft cap, the first leads to e^2x, of which the kernels compute tanh(x).
        """
        assert options.softcap is None or options.slopes_H is None, "no model has both"
        factor = options.scale * math.log2(math.e)
        if options.softcap is None:
            return factor, 0.0
        return 2 * factor / options.softcap, options.softcap * math.log2(math.e)

    def _decode(self, layer: int, q_THD: Tensor, out_THD: Tensor, batch: ForwardBatch, options: AttendOptions) -> None:
        from octavo.kernels.paged_attention_decode import decode_kernel

        form = self._form(batch.num_single)
        decode_kernel[(self._units(batch.num_single),)](
            q_THD,
            out_THD,
            self._partial,
            self._counter,
            self._lists[options.window],
            batch.block_table_NB,
            *self._kept(layer),
            options.sinks_H,
            options.slopes_H,
            q_THD.stride(0),
            batch.block_table_NB.stride(0),
            *self._factors(options),
            WINDOW=self._window(options.window),
            CAPPED=options.softcap is not None,
            SINKS=options.sinks_H is not None,
            SLOPED=options.slopes_H is not None,
            GROUP_P2=max(16, _power_of_two(self.group)),
            TILE=form.tile,
            num_warps=form.warps,
            num_stages=form.stages,
            **self._shape,
        )

    def _prefill(self, layer: int, q_THD: Tensor, out_THD: Tensor, batch: ForwardBatch, options: AttendOptions) -> None:
        from octavo.kernels.paged_attention_prefill import prefill_kernel

        spec, first = self.spec, batch.num_single
        count = len(batch.context_lens_N) - first
        tiles = (len(q_THD) - first) // (self._prefill_form["M"] // self.group) + count
        prefill_kernel[(spec.num_kv_heads, tiles)](
            q_THD,
            out_THD,
            batch.query_start_N1[first:],
            batch.context_lens_N[first:],
            batch.block_table_NB[first:],
            *self._kept(layer),
            options.sinks_H,
            options.slopes_H,
            count,
            q_THD.stride(0),
            batch.block_table_NB.stride(0),
            *self._factors(options),
            WINDOW=self._window(options.window),
            CAPPED=options.softcap is not None,
            SINKS=options.sinks_H is not None,
            SLOPED=options.slopes_H is not None,
            **self._prefill_form,
            **self._shape,
        )


def _prefill_form(spec: AttentionSpec, dim_p2: int, group: int, tile: int) -> dict[str, int]:
    """Rows and tokens at a time, warps, stages and registers: the fastest of a sweep on an H200, or what fits."""
    least = max(PREFILL_ROWS // 2, _power_of_two(group))
    small = {"M": least, "TILE": tile, "num_warps": 4, "num_stages": 2}
    if spec.device.type != "cuda" or spec.dtype == torch.float32:
        return small
    if dim_p2 == 256:
        properties = torch.cuda.get_device_properties(spec.device)
        if getattr(properties, "shared_memory_per_block_optin", 0) < 200 << 10:
            return small
        return {"M": PREFILL_ROWS, "TILE": 64, "num_warps": 8, "num_stages": 3}
    if spec.quantised:  # turning bytes into floats takes registers
        return {"M": PREFILL_ROWS, "TILE": 64, "num_warps": 8, "num_stages": 3}
    form = {"M": PREFILL_ROWS, "TILE": 64, "num_warps": 8, "num_stages": 2 if dim_p2 == 128 else 5}
    if torch.version.hip is None:
        form["maxnreg"] = 128  # two programs share a multiprocessor: one's softmax runs beside the other's products
    return form


def _has_fp8(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


def _power_of_two(value: int) -> int:
    """The smallest that is not below."""
    return 1 << (value - 1).bit_length()
