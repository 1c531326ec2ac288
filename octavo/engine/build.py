"""From a configuration to a scheduler and a runner: resolves what was left open and says what it decided.

Imports torch inside the functions, so that the front of the engine can import this package without it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from octavo.core.config import CacheConfig, EngineConfig, SchedulerConfig
from octavo.core.errors import ConfigError
from octavo.core.hub import tokenizer_folder
from octavo.core.pooling import PoolingInfo
from octavo.core.progress import Phase
from octavo.grammar.rows import Grammars
from octavo.models.groups import LayerGroups
from octavo.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    import torch

    from octavo.attention.base import AttentionBackend, AttentionSpec
    from octavo.models.decoder import Decoder
    from octavo.runner.memory import Ledger
    from octavo.runner.runner import Runner

log = logging.getLogger(__name__)

# Without a flag the CPU's cache takes a quarter of the free memory, at most 4 GiB: the machine has other work.
DEBUG = "OCTAVO_DEBUG"  # set to 1: rows and blocks are poisoned as they are reused; for tests and for finding faults
CPU_CACHE_SHARE, CPU_CACHE_BYTES = 0.25, 4 << 30

KV_DTYPES = {"fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "int8": "int8"}  # torch's names


class EngineInfo(msgspec.Struct, array_like=True):
    """What the front of the engine needs to know of it, and what is printed at start."""

    max_model_len: int
    kv_capacity: int  # tokens that one request can hold at most
    vocab_size: int
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    prefix_caching: bool
    device: str
    dtype: str
    attention: str
    phases: list[tuple[str, float]]  # of the start, with their seconds
    ledger: list[tuple[str, str]]  # of the memory
    pooling: PoolingInfo | None = None  # what it can do instead of generating

    @property
    def supported_tasks(self) -> list[str]:
        return ["generate"] if self.pooling is None else self.pooling.tasks


class Phases:
    def __init__(self) -> None:
        self.seconds: list[tuple[str, float]] = []
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds.append((name, now - self._last))
        self._last = now


def build(
    config: EngineConfig, folder: Path, enter: Callable[[Phase], None]
) -> tuple[Scheduler, Runner, EngineInfo, bool]:
    """The parts of an engine core, what there is to know of them, and whether steps overlap.

    `enter` hears of each phase, and of LOAD again with each tensor, perhaps from another thread.
    """
    phases = Phases()
    from octavo.attention.select import select_backend
    from octavo.models.loader import load_model
    from octavo.platforms import pick_device
    from octavo.runner.runner import Runner

    phases.end("import torch")
    device = pick_device(config.device)
    on_gpu = device.type == "cuda"
    ledger = open_ledger(device)
    phases.end("open device")
    enter(Phase.LOAD)
    model = load_model(
        folder,
        dtype=config.dtype,
        device=device,
        load_format=config.load_format,
        seed=config.seed,
        max_model_len=config.max_model_len,
        quantization=config.quantization,
        overrides=config.overrides,
        on_tensor=partial(enter, Phase.LOAD),
    )
    enter(Phase.ALLOCATE)
    ledger.entries["weights"] = model.num_bytes
    phases.end("load weights")

    max_len, max_rows, max_tokens = resolve_limits(config, model.spec.max_position, on_gpu)
    groups = LayerGroups.of(model.spec.windows, max_len)
    model.group_layers(groups)
    spec = _attention_spec(config, model, groups, max_len, max_rows)
    backend, reasons = select_backend(config.attention_backend, spec)
    log.info("attention: %s", "; ".join([f"{backend.name} runs", *reasons]))
    debug = os.environ.get(DEBUG) == "1"
    shape = CacheConfig(1, config.block_size, max_rows, max_len, config.enable_prefix_caching, debug, groups.windows)
    graphs = on_gpu and backend.graph_safe and not config.enforce_eager
    num_blocks = _num_blocks(config, shape, model, spec, backend, max_tokens, graphs, ledger)
    cache = dataclasses.replace(shape, num_blocks=num_blocks)
    ledger.entries["KV cache"] = cache.num_blocks * spec.kv_bytes_per_block()
    phases.end("measure memory")
    runner = Runner(model, cache, backend(spec, cache.num_blocks), device, graphs)
    limits = SchedulerConfig(
        max_tokens, config.long_prefill_token_threshold, _context_cost(model), config.scheduling_policy, config.seed
    )
    place = tokenizer_folder(config, folder)
    scheduler = Scheduler(limits, cache, Grammars(place, model.spec.vocab_size, cache.max_rows))
    phases.end("allocate KV cache")
    enter(Phase.WARM_UP)
    runner.warm_up()
    phases.end("record the largest step")
    log.info("memory: %s", ", ".join(f"{name} {size}" for name, size in ledger.table()))
    log.info(
        "KV cache: %d blocks of %d tokens for %s; %d sequences, %d tokens a step, a context of %d",
        *(cache.num_blocks, cache.block_size, groups.text, max_rows, max_tokens, max_len),
    )
    log.info("start: %s", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in phases.seconds))
    info = EngineInfo(
        max_model_len=max_len,
        kv_capacity=cache.capacity,
        vocab_size=model.spec.vocab_size,
        num_blocks=cache.num_blocks,
        block_size=cache.block_size,
        max_num_seqs=max_rows,
        max_num_batched_tokens=max_tokens,
        prefix_caching=cache.prefix_caching,
        device=ledger.device,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=backend.name,
        phases=phases.seconds,
        ledger=ledger.table(),
    )
    return scheduler, runner, info, on_gpu if config.overlap is None else config.overlap


def resolve_limits(config: EngineConfig, trained: int, on_gpu: bool) -> tuple[int, int, int]:
    """(context, sequences at once, tokens of a step) at most, for a model that is made for `trained` tokens."""
    asked = config.max_model_len
    if asked is not None and asked > trained:
        raise ConfigError(f"max_model_len {asked} is more than the {trained} tokens that the model is made for")
    max_tokens = config.max_num_batched_tokens or (8192 if on_gpu else 2048)
    return asked or trained, min(config.max_num_seqs or (1024 if on_gpu else 256), max_tokens), max_tokens


def _context_cost(model: Decoder) -> float:
    """Tokens of context whose attention costs as many operations as a token's matrix products."""
    spec = model.spec
    matrices = sum(linear.shape[0] * linear.shape[1] for linear in model.linears())
    if (experts := spec.experts) is not None:  # a token sees few of them
        matrices += experts.routing.top_k * sum(experts.layers) * 3 * spec.hidden_size * experts.inner_size
    return max(1.0, matrices / (2 * spec.num_layers * spec.num_heads * spec.head_dim))


def _attention_spec(
    config: EngineConfig, model: Decoder, groups: LayerGroups, max_len: int, max_rows: int
) -> AttentionSpec:
    import torch

    from octavo.attention.base import AttentionSpec

    spec = model.spec
    return AttentionSpec(
        num_layers=groups.size,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=model.dtype,
        device=model.device,
        block_size=config.block_size,
        max_model_len=max_len,
        windows=tuple(dict.fromkeys(spec.windows)),
        max_num_seqs=max_rows,
        kv_dtype=getattr(torch, KV_DTYPES[config.kv_cache_dtype]) if config.kv_cache_dtype in KV_DTYPES else None,
        latent_dim=0 if spec.latent is None else spec.latent.rank,
        sinks=spec.sinks,
        slopes=spec.slopes is not None,
        chunked=spec.chunked,
    )


def open_ledger(device: torch.device) -> Ledger:
    from octavo.platforms import cpu, cuda
    from octavo.runner.memory import Ledger

    if device.type == "cpu":
        free, total = cpu.memory()
        return Ledger(cpu.name(), total, free)
    cuda.use_growing_segments()
    free, total = cuda.memory(device)
    return Ledger(cuda.name(device), total, free)


def _num_blocks(
    config: EngineConfig,
    shape: CacheConfig,
    model: Decoder,
    spec: AttentionSpec,
    backend: type[AttentionBackend],
    max_tokens: int,
    graphs: bool,
    ledger: Ledger,
) -> int:
    """As many as memory allows beside everything else, or as many as was asked for."""
    from octavo.runner.memory import blocks_that_fit, edits_of_rows

    most = shape.max_rows * max(shape.pages_for(shape.blocks_per_row), len(shape.windows))
    if spec.device.type == "cpu":
        room = min(int(ledger.free * CPU_CACHE_SHARE), CPU_CACHE_BYTES)
    else:
        from octavo.runner.graphs import reserve
        from octavo.runner.profile import measure_workspace

        workspace, sampler = measure_workspace(model, spec, backend, shape, max_tokens)
        edits = edits_of_rows(shape.max_rows, model.spec.vocab_size)
        ledger.entries |= {"workspace": workspace, "sampler": sampler, "penalties": edits}
        if graphs:
            vocab_size, itemsize = model.spec.vocab_size, model.dtype.itemsize
            ledger.entries["CUDA graphs"] = reserve(workspace, max_tokens, shape, vocab_size, itemsize)
        # What others hold of the device counts too: the share is of all of it.
        taken = ledger.total - ledger.free + sum(ledger.entries.values())
        room = int(ledger.total * config.gpu_memory_utilization) - taken
    if config.num_kv_blocks is not None:
        if config.num_kv_blocks < shape.pages_for(1):
            raise ConfigError(f"num_kv_blocks must be at least {shape.pages_for(1)}: one for each group of layers")
        return config.num_kv_blocks
    return blocks_that_fit(config.kv_cache_memory_bytes or room, spec.kv_bytes_per_block(), most)
