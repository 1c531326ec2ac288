"""From a configuration to the parts of an engine that reads: as `octavo.engine.build`, without a KV cache.

Imports torch inside the functions, so that the front of the engine can import this package without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.core.hub import tokenizer_folder
from octavo.core.progress import Phase
from octavo.engine.build import EngineInfo, Phases, open_ledger
from octavo.models.config import ConfigReader
from octavo.models.pooling.files import Kind, PoolingSpec, is_for_pooling, read_pooling
from octavo.models.registry import POOLING
from octavo.models.spec import read_config
from octavo.scheduler.pooling import PoolingScheduler
from octavo.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from octavo.runner.pooling import PoolingRunner

log = logging.getLogger(__name__)

CLASSIFIER = "ForSequenceClassification"
MAX_TOKENS = {"cpu": 2048, "cuda": 16384}  # of a step, but for a longer prompt
MAX_SEQUENCES = {"cpu": 256, "cuda": 1024}


def reads(config: EngineConfig, folder: Path) -> bool:
    """Whether the model of the folder pools what it reads, or generates. ConfigError if it cannot do what is asked."""
    (name, *_) = _config(config, folder).texts("architectures") or [""]
    made_for = name in POOLING or is_for_pooling(folder) or config.convert not in ("auto", "none")
    if config.runner == "generate" and name in POOLING:
        raise ConfigError(f"runner generate: {name} does not generate text")
    return config.runner == "pooling" or (config.runner == "auto" and made_for)


def _config(config: EngineConfig, folder: Path) -> ConfigReader:
    return read_config(folder, config.overrides)


def _pooling(config: EngineConfig, folder: Path) -> PoolingSpec:
    from octavo.models.encoder import Encoder
    from octavo.models.registry import load_class

    values = _config(config, folder)
    name = values.texts("architectures")[0]
    kind: Kind = "classify" if name.endswith(CLASSIFIER) else "embed"
    if config.convert in ("classify", "reward"):
        kind = "classify" if config.convert == "classify" else "reward"
    elif config.convert == "embed":
        kind = "embed"
    if kind == "embed" and name.endswith(CLASSIFIER):
        raise ConfigError(f"convert embed: {name} has a head that classifies")
    encoder = issubclass(load_class(name), Encoder)
    if kind != "embed" and encoder and not name.endswith(CLASSIFIER):
        raise ConfigError(f"convert {config.convert}: {name} has no head that classifies")

    def token_id(token: str) -> int | None:
        return load_tokenizer(tokenizer_folder(config, folder)).token_to_id(token)

    return read_pooling(folder, values, kind, config.pooling_type, encoder, token_id)


def build_pooling(
    config: EngineConfig, folder: Path, enter: Callable[[Phase], None]
) -> tuple[PoolingScheduler, PoolingRunner, EngineInfo, bool]:
    """The parts of an engine core, what there is to know of them, and whether steps overlap."""
    phases = Phases()
    import torch

    from octavo.attention.base import AttentionSpec
    from octavo.attention.select import select_varlen
    from octavo.models.loader import load_pooling_model
    from octavo.platforms import pick_device
    from octavo.runner.pooling import PoolingRunner

    phases.end("import torch")
    device = pick_device(config.device)
    ledger = open_ledger(device)
    phases.end("open device")
    pooling = _pooling(config, folder)
    enter(Phase.LOAD)
    model = load_pooling_model(
        folder,
        pooling,
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
    max_len = _context(config, model.spec.max_position, pooling.max_length)
    max_tokens = config.max_num_batched_tokens or MAX_TOKENS[device.type]
    max_rows = min(config.max_num_seqs or MAX_SEQUENCES[device.type], max_tokens)
    spec = AttentionSpec(
        num_layers=model.spec.num_layers,
        num_heads=model.spec.num_heads,
        num_kv_heads=model.spec.num_kv_heads,
        head_dim=model.spec.head_dim,
        dtype=model.dtype,
        device=device,
        block_size=config.block_size,
        max_model_len=max_len,
        windows=tuple(dict.fromkeys(model.spec.windows)),
        max_num_seqs=max_rows,
        latent_dim=0 if model.spec.latent is None else model.spec.latent.rank,
        sinks=model.spec.sinks,
        slopes=model.spec.slopes is not None,
        chunked=model.spec.chunked,
    )
    backend, reasons = select_varlen(config.attention_backend, spec)
    log.info("attention: %s", "; ".join([f"{backend.name} runs", *reasons]))
    runner = PoolingRunner(model, backend(spec, 0), device)
    enter(Phase.WARM_UP)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        runner.largest_step(max(max_tokens, max_len), min(max_len, max_tokens), max_rows)
        ledger.entries["workspace"] = torch.cuda.max_memory_allocated() - before
    phases.end("run the largest step")
    able = pooling.info(model.spec.hidden_size)
    log.info("memory: %s", ", ".join(f"{name} {size}" for name, size in ledger.table()))
    log.info(
        "no KV cache: prompts are read whole; %d sequences, %d tokens a step, a context of %d; the model can %s",
        *(max_rows, max_tokens, max_len, ", ".join(able.tasks)),
    )
    log.info("start: %s", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in phases.seconds))
    info = EngineInfo(
        max_model_len=max_len,
        kv_capacity=max_len,
        vocab_size=model.spec.vocab_size,
        num_blocks=0,
        block_size=config.block_size,
        max_num_seqs=max_rows,
        max_num_batched_tokens=max_tokens,
        prefix_caching=False,
        device=ledger.device,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=backend.name,
        phases=phases.seconds,
        ledger=ledger.table(),
        pooling=able,
    )
    scheduler = PoolingScheduler(max_tokens, max_rows, config.scheduling_policy)
    return scheduler, runner, info, device.type == "cuda" if config.overlap is None else config.overlap


def _context(config: EngineConfig, trained: int, tuned: int | None) -> int:
    asked = config.max_model_len
    if asked is not None and asked > trained:
        raise ConfigError(f"max_model_len {asked} is more than the {trained} tokens that the model is made for")
    return asked or min(trained, tuned or trained)
