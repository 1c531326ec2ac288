"""`octavo plan`: the memory ledger, what fits and how fast it would be, from a config.json and a GPU's name.

The floor of a time is what the bytes and operations need at the fastest copy and matrix product that the device
reaches (`octavo.bench.hardware`). What is expected is more, by shares of those rates that Octavo reached on one H200
with Llama-3-8B and Llama-3.2-1B: those measured times come out within 12 %, those of quantised layers and of experts
within 20 % (tests/advise/test_plan.py holds them).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.bench.hardware import CEILINGS, Cost, Device, parameters, scaled
from octavo.core.config import CacheConfig, EngineConfig
from octavo.core.errors import ConfigError
from octavo.core.gguf.file import GgufFile
from octavo.engine.build import resolve_limits
from octavo.engine.build_pooling import MAX_TOKENS, reads
from octavo.models.config import read_json
from octavo.models.groups import LayerGroups
from octavo.models.spec import ModelSpec
from octavo.quant import METHODS, ONLINE
from octavo.quant.sizes import expert_size, gguf_size, layout_of

GIB = 1 << 30
# Rows of matrix products, and the share of the slower rate that they reach.
MATRIX_SHARES = {
    "plain": ((1, 0.97), (8, 0.87), (64, 0.80)),
    "experts": ((1, 0.62), (8, 0.84), (64, 0.92), (256, 0.80), (8192, 0.53)),
    "float8": ((1, 0.73), (8, 0.70), (64, 0.65), (256, 0.67), (8192, 0.76)),
    "8 bits": ((1, 0.70), (64, 0.55), (256, 0.40), (1024, 0.60), (4096, 0.73)),
    "4 bits": ((1, 0.52), (8, 0.49), (64, 0.37), (256, 0.44), (1024, 0.60), (4096, 0.73)),
}
FLOAT8_FLOPS = 1.86  # of products of float8, in those of 16 bits
ATTENTION_READ, ATTENTION_FLOPS = 0.88, 0.65  # of decode's bytes, of prefill's operations
LAYER_SECONDS = 8e-6  # of launches and small kernels
BATCHES = (1, 8, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Step:
    floor: float  # seconds
    expected: float
    bound: str  # what it waits for


@dataclass(frozen=True, slots=True)
class Plan:
    spec: ModelSpec
    device: Device
    cost: Cost
    dtype: str
    parameters: int
    weight_size: float | None  # bytes of a weight in quantised linear layers
    expert_size: float | None  # and in quantised experts
    float8: bool  # products of linear layers are of float8, activations too
    reads: bool  # it generates nothing: it has no KV cache and no decode step
    ledger: dict[str, int]  # bytes
    cache: CacheConfig
    context: int  # tokens
    rows: int  # sequences at once, at most
    step_tokens: int
    input_len: int
    output_len: int

    @property
    def token_bytes(self) -> int:
        """Of keys and values."""
        return self.cost.kv_bytes * self.cost.num_layers

    @property
    def active(self) -> int:
        """Parameters that a token needs, those of the head included."""
        return (self.cost.token_flops + self.cost.head_flops) // 2

    @property
    def cache_tokens(self) -> int:
        """That one sequence could have, if no context were too long. Where all layers have windows: that they see."""
        pages, windows = self.cache.num_blocks, [window for window in self.cache.windows if window is not None]
        whole = len(self.cache.windows) - len(windows)
        if whole:
            pages = (pages - sum(map(self.cache.pages_of, windows))) // whole if windows else pages
        return max(0, pages) * self.cache.block_size

    def sequences(self, tokens: int) -> int:
        """Of so many tokens, that the cache holds at once."""
        return self.cache.num_blocks // self.cache.pages_for(-(-tokens // self.cache.block_size))

    @property
    def batch(self) -> int:
        """Sequences of `input_len` and, on average, half of `output_len` that run at once."""
        return max(1, min(self.rows, self.sequences(self.input_len + self.output_len // 2)))

    @property
    def matrices(self) -> str:
        """The kind of most matrix products, of `MATRIX_SHARES`."""
        if self.spec.experts:
            return "experts"
        if self.weight_size is None:
            return "plain"
        return "float8" if self.float8 else "8 bits" if self.weight_size > 0.8 else "4 bits"

    def step(self, contexts: int, tokens: int, rows: int) -> Step:
        """`rows` sequences compute `tokens` each after `contexts` others, and a token is sampled for each."""
        device = self.device
        assert device.bandwidth is not None and device.flops is not None
        starts_N, counts_N = np.full(rows, contexts), np.full(rows, tokens)
        moved, flops = self.cost.matrices(rows * tokens, 0 if self.reads else rows)
        attended, scored = self.cost.attention(starts_N, counts_N)
        multiplying = flops / device.flops / (FLOAT8_FLOPS if self.matrices == "float8" else 1)
        reading, computing = (moved + attended) / device.bandwidth, multiplying + scored / device.flops
        # A product that needs both rates to the full gets neither: the sum of cubes is between maximum and sum.
        matrices = math.cbrt((moved / device.bandwidth) ** 3 + multiplying**3)
        attention = max(attended / device.bandwidth / ATTENTION_READ, scored / device.flops / ATTENTION_FLOPS)
        share = matrix_share(self.matrices, rows * tokens)
        expected = matrices / share + attention + self.cost.num_layers * LAYER_SECONDS
        return Step(max(reading, computing), expected, "bandwidth" if reading >= computing else "matrix rate")

    def decode(self, batch: int) -> Step:
        return self.step(self.input_len + self.output_len // 2, 1, batch)

    def prefill_rate(self) -> tuple[float, float]:
        """Tokens a second of prompts of `input_len`: (expected, at most)."""
        rows = max(1, self.step_tokens // self.input_len)
        step = self.step(0, self.input_len, rows)
        return rows * self.input_len / step.expected, rows * self.input_len / step.floor

    def request_rate(self) -> tuple[float, float]:
        """Requests a second of `input_len` and `output_len` tokens, many waiting: (expected, at most)."""
        batch = self.batch
        step, (expected, most) = self.decode(batch), self.prefill_rate()
        return tuple(
            1 / (self.input_len / rate + self.output_len * seconds / batch)
            for rate, seconds in ((expected, step.expected), (most, step.floor))
        )  # type: ignore[return-value]

    def batches(self) -> list[int]:
        fit = [batch for batch in BATCHES if batch < self.batch]
        return [*fit, self.batch]

    def record(self) -> dict[str, Any]:
        """For JSON. Times in milliseconds."""
        prefill, first = self.prefill_rate(), self.step(0, self.input_len, 1)
        found: dict[str, Any] = {
            "architecture": self.spec.architecture,
            "parameters": self.parameters,
            "active_parameters": self.active,
            "dtype": self.dtype,
            "bytes_per_quantised_weight": self.weight_size,
            "bytes_per_quantised_expert_weight": self.expert_size,
            "gpu": self.device.name,
            "bandwidth": self.device.bandwidth,
            "flops": self.device.flops,
            "ledger_bytes": self.ledger,
            "max_model_len": self.context,
            "input_len": self.input_len,
            "first_token": {"floor_ms": first.floor * 1e3, "expected_ms": first.expected * 1e3},
            "prefill_tokens_per_s": {"expected": prefill[0], "at_most": prefill[1]},
        }
        if self.reads:
            del found["first_token"]
            found["one_text"] = {"floor_ms": first.floor * 1e3, "expected_ms": first.expected * 1e3}
            found["texts_per_s"] = {"expected": prefill[0] / self.input_len, "at_most": prefill[1] / self.input_len}
            return found
        requests = self.request_rate()
        return found | {
            "kv_bytes_per_token": self.token_bytes,
            "kv_cache_tokens": self.cache_tokens,
            "longest_context": self.cache.capacity,
            "sequences_of_full_context": min(self.rows, self.sequences(self.context)),
            "output_len": self.output_len,
            "sequences_at_once": self.batch,
            "decode": [
                {
                    "batch": batch,
                    "floor_ms": step.floor * 1e3,
                    "expected_ms": step.expected * 1e3,
                    "tokens_per_s": batch / step.expected,
                    "bound": step.bound,
                }
                for batch in self.batches()
                for step in [self.decode(batch)]
            ],
            "requests_per_s": {"expected": requests[0], "at_most": requests[1]},
        }


def matrix_share(kind: str, rows: int) -> float:
    """Of a matrix product's floor in its time, by its rows: straight lines over their logarithm."""
    at, share = zip(*MATRIX_SHARES[kind], strict=True)
    return float(np.interp(math.log(rows), np.log(at), share))


def find_device(
    name: str | None, memory: float | None = None, bandwidth: float | None = None, flops: float | None = None
) -> Device:
    """A GPU by its name, or this machine's; `memory` (GiB) and rates that are given replace what is known of it."""
    if name is None:
        from octavo.platforms import cuda

        reason = cuda.unavailable()
        if reason is not None:
            raise ConfigError(f"--gpu is missing, and {reason}; known: {', '.join(_names())}")
        import torch

        here = torch.device("cuda", torch.cuda.current_device())
        name, memory = cuda.name(here), memory or cuda.memory(here)[1] / GIB
    found = Device.find(name, bandwidth, flops)
    if memory is not None:
        found = dataclasses.replace(found, memory=int(memory * GIB))
    if found.memory is None or found.bandwidth is None or found.flops is None:
        raise ConfigError(
            f"--gpu: nothing is known of {name!r:.80}; known: {', '.join(_names())}; of others give --memory, "
            "--device-bandwidth and --device-flops"
        )
    return found


def _names() -> list[str]:
    return [ceiling.part.lower() for ceiling in CEILINGS]


def weight_sizes(folder: Path, online: str | None, itemsize: int) -> tuple[float | None, float | None, bool]:
    """Bytes of a weight in linear layers and in experts, quantised by the folder or as `--quantization` asks (None:
    they are plain), and whether layers multiply float8.

    Raises ConfigError for what the loader would refuse.
    """
    gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
    if gguf is not None and not any(folder.glob("*.safetensors*")):
        if online not in (None, "gguf"):
            raise ConfigError(f"--quantization {online}: {gguf.name} is quantised already")
        types: Counter[str] = Counter()
        for name, tensor in GgufFile(gguf).tensors.items():
            if name.startswith("blk.") and len(tensor.shape) > 1:
                types[tensor.type.name] += math.prod(tensor.shape)
        return gguf_size(types, itemsize), None, False
    stored = read_json(folder / "config.json").get("quantization_config")
    stored = stored if isinstance(stored, dict) else {}
    method = stored.get("quant_method")
    if online is not None and online.removesuffix("_marlin").removeprefix("gpt_oss_") != method:
        if method in METHODS:
            raise ConfigError(f"--quantization {online}: the model is quantised already ({method})")
        if online not in ONLINE:
            raise ConfigError(f"--quantization must be one of {', '.join(ONLINE)}, got {online}")
    layout = layout_of(stored, online)
    float8 = layout is not None and layout.kind == "fp8" and layout.rounds and layout.group is None
    return None if layout is None else layout.size, expert_size(stored, layout), float8


def plan(config: EngineConfig, folder: Path, device: Device, input_len: int, output_len: int) -> Plan:
    """What an engine with this configuration would be on the device.

    Raises ConfigError where the model does not fit on it, or the lengths not in its context.
    """
    from octavo.runner.graphs import reserve
    from octavo.runner.memory import edits_of_rows

    assert device.memory is not None
    spec = ModelSpec.from_folder(folder, config.overrides)
    dtype = spec.dtype if config.dtype == "auto" else config.dtype
    itemsize = 4 if dtype == "float32" else 2
    # A quantised cache has a scale of two bytes beside each head.
    kv_itemsize = None if config.kv_cache_dtype == "auto" else 1 + 2 / spec.head_dim
    size, experts, float8 = weight_sizes(folder, config.quantization, itemsize)
    sizes = {"weight_size": size, "expert_size": experts if spec.experts else None}
    cost = Cost.of_folder(folder, itemsize, kv_itemsize, overrides=config.overrides, **sizes)
    reading = reads(config, folder)
    context, rows, step_tokens = resolve_limits(config, spec.max_position, on_gpu=True)
    if reading:
        step_tokens = config.max_num_batched_tokens or MAX_TOKENS["cuda"]
    groups = LayerGroups.of(spec.windows, context)
    shape = CacheConfig(1, config.block_size, rows, context, config.enable_prefix_caching, windows=groups.windows)

    # A step's largest moment: the stream, what is added to it, and the MLP's two inner tensors.
    inner = spec.intermediate_size * (3 if spec.gated else 2)
    if spec.experts:
        inner = max(inner, 3 * (spec.experts.routing.top_k * spec.experts.inner_size + spec.experts.shared_size))
    workspace = step_tokens * (2 * spec.hidden_size + inner) * itemsize
    head = spec.vocab_size * spec.hidden_size * itemsize
    ledger = {"weights": cost.layer_bytes + head * (1 if spec.tie_embeddings or reading else 2), "workspace": workspace}
    generating = {
        "sampler": 2 * rows * spec.vocab_size * itemsize,
        "penalties": edits_of_rows(rows, spec.vocab_size),
        "CUDA graphs": 0 if config.enforce_eager else reserve(workspace, step_tokens, shape, spec.vocab_size, itemsize),
    }
    ledger |= {} if reading else generating
    room = int(device.memory * config.gpu_memory_utilization) - sum(ledger.values())
    page = cost.kv_bytes * groups.size * config.block_size
    if room < (0 if reading else page * shape.pages_for(1)):
        raise ConfigError(
            f"{spec.architecture} does not fit: {sum(ledger.values()) / GIB:.1f} GiB"
            f"{'' if reading else ' before the KV cache'}, and "
            f"{config.gpu_memory_utilization:.0%} of {device.name} are "
            f"{device.memory * config.gpu_memory_utilization / GIB:.1f} GiB"
        )
    if not reading:
        most = rows * shape.pages_for(shape.blocks_per_row) * page
        ledger["KV cache"] = min(config.kv_cache_memory_bytes or room, most)
    found = Plan(
        spec=spec,
        device=device,
        cost=cost,
        dtype=dtype,
        parameters=parameters(spec),
        **sizes,
        float8=float8,
        reads=reading,
        ledger=ledger,
        cache=dataclasses.replace(shape, num_blocks=ledger.get("KV cache", 0) // page),
        context=context,
        rows=rows,
        step_tokens=step_tokens,
        input_len=input_len,
        output_len=output_len,
    )
    if reading and input_len > context:
        raise ConfigError(f"--input-len {input_len} is more than the longest text, {context} tokens")
    if not reading and input_len + output_len > found.cache.capacity:
        raise ConfigError(
            f"--input-len {input_len} and --output-len {output_len} are more than the longest context, "
            f"{found.cache.capacity} tokens"
        )
    return found


def lines(found: Plan) -> list[str]:
    """For people."""
    device, ledger = found.device, found.ledger
    assert device.memory is not None and device.bandwidth is not None and device.flops is not None
    rest = device.memory - sum(ledger.values())
    return [
        f"{found.spec.architecture}: {_count(found.parameters)} parameters in {found.dtype}"
        + (f", {_count(found.active)} of them at work for a token" if found.spec.experts else "")
        + (f", linear layers in {found.weight_size:.2f} bytes a weight" if found.weight_size is not None else "")
        + (f", experts in {found.expert_size:.2f}" if found.expert_size is not None else "")
        + f", a context of {found.context:,} tokens",
        f"{device.name}: {device.memory / GIB:.1f} GiB, {scaled(device.bandwidth, 'B/s')}, "
        f"{scaled(device.flops, 'FLOP/s')}",
        "",
        "Memory",
        *(f"  {name:<14}{size / GIB:9.2f} GiB" for name, size in ledger.items()),
        f"  {'left to others':<14}{rest / GIB:9.2f} GiB",
        "",
        *(_reading(found) if found.reads else _generating(found)),
        "",
        "Assumptions: every weight is read once a step, keys and values once a layer; nothing is found in the prefix",
        "cache; host and network take no time. The floor is bytes / bandwidth or operations / rate. What is expected",
        "takes the shares of them that Octavo reached on one H200 with models of its kind; other GPUs may differ.",
        "Workspace is an estimate: the engine measures it when it starts.",
        *(QUANTISED if found.weight_size is not None or found.expert_size is not None else ()),
    ]


QUANTISED = (
    "Quantised layers count with the bytes that they take in memory, quantised experts at the rates of plain ones,",
    "which their kernels need not reach; embeddings, head and routers stay as they are.",
)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _reading(found: Plan) -> list[str]:
    """Of a model that generates nothing."""
    one, (expected, most) = found.step(0, found.input_len, 1), found.prefill_rate()
    return [
        f"One text of {found.input_len:,} tokens: {one.floor * 1e3:.2f} ms at least, "
        f"{one.expected * 1e3:.2f} ms expected",
        f"Many at once: {expected:,.0f} tokens/s expected, {most:,.0f} at most; "
        f"that is {expected / found.input_len:,.0f} and {most / found.input_len:,.0f} such texts a second",
    ]


def _generating(found: Plan) -> list[str]:
    prefill, requests = found.prefill_rate(), found.request_rate()
    first = found.step(0, found.input_len, 1)
    full = min(found.rows, found.sequences(found.context))
    slide = [window for window in found.spec.windows if window is not None and window < found.context]
    return [
        "The KV cache",
        f"  a token takes {found.token_bytes / 1024:,.0f} KiB; it holds {found.cache_tokens:,} tokens",
        *(
            [f"  {len(slide)} of {found.spec.num_layers} layers keep the last {max(slide):,} tokens only"]
            if slide
            else []
        ),
        f"  longest context: {found.cache.capacity:,} tokens" + (f"; {full:,} such sequences at once" if full else ""),
        f"  prompts of {found.input_len:,} with answers of {found.output_len:,}: {found.batch:,} at once",
        "",
        "Decode step     floor  expected      tokens/s  bound by",
        *(
            f"  batch {batch:<6}{step.floor * 1e3:6.2f} ms {step.expected * 1e3:6.2f} ms {batch / step.expected:11,.0f}"
            f"  {step.bound}"
            for batch in found.batches()
            for step in [found.decode(batch)]
        ),
        "",
        f"First token of one prompt: {first.floor * 1e3:.1f} ms at least, {first.expected * 1e3:.1f} ms expected",
        f"Prefill: {prefill[0]:,.0f} tokens/s expected, {prefill[1]:,.0f} at most",
        f"Many such requests at once: {requests[0]:.1f} a second expected, {requests[1]:.1f} at most",
    ]
