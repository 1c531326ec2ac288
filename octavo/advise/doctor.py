"""`octavo doctor`: what is installed, what would run here and why the rest would not, and what to mend.

Every check is a function that yields findings; none changes anything. A finding with a mend is a problem: something
will not work until a person does what it says.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.core.config import EngineConfig
from octavo.core.errors import OctavoError
from octavo.core.hub import config_folder
from octavo.version import VERSION

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
OPEN_FILES = 4096  # a stream is a socket; 1,000 of them and everything else fit
SHARED_MEMORY = 64 << 20
DISK = 1 << 30
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Finding:
    topic: str
    what: str
    found: str
    mend: str | None = None  # what a person should do; None: nothing is wrong


def examine(config: EngineConfig, port: int) -> Iterator[Finding]:
    """All findings, for an engine with this configuration and a server at this port."""
    yield Finding("software", "octavo", VERSION)
    yield from _python()
    yield from _packages()
    yield from _processor()
    yield from _gpus()
    yield from _model(config)
    yield from _system(port)


def _python() -> Iterator[Finding]:
    old = sys.version_info < (3, 11)
    yield Finding("software", "Python", platform.python_version(), "install Python 3.11 or newer" if old else None)
    if sys.platform != "linux":
        yield Finding("software", "system", platform.platform(), "run it on Linux, or in a container")


def _packages() -> Iterator[Finding]:
    """What the installed package says that it needs, and its extras."""
    try:
        lines = importlib.metadata.requires("octavo") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("software", "packages", "octavo is not installed as a package", "pip install .")
        return
    for line in lines:
        match = re.match(r"[\w.-]+", line)
        assert match is not None
        name, least = match[0], re.search(r">=\s*([\d.]+)", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if extra and extra[1] == "dev":
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if extra:
                yield Finding("software", name, f"not installed; only for pip install octavo[{extra[1]}]")
            else:
                yield Finding("software", name, "not installed", f"pip install '{line.partition(';')[0].strip()}'")
            continue
        old = least is not None and _numbers(version) < _numbers(least[1])
        yield Finding("software", name, version, f"pip install '{line.partition(';')[0].strip()}'" if old else None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _processor() -> Iterator[Finding]:
    from octavo.platforms import cpu

    free, total = cpu.memory()
    yield Finding("processor", "name", f"{cpu.name()}, {cpu.cores()} cores for this process")
    yield Finding("processor", "memory", f"{free / GIB:.1f} of {total / GIB:.1f} GiB free")
    dtype, reason = cpu.default_dtype("bfloat16")
    yield Finding("processor", "bfloat16", "on hardware" if reason is None else f"runs as {dtype}: {reason}")


def _gpus() -> Iterator[Finding]:
    try:
        import torch

        from octavo.platforms import cuda
    except ImportError as error:
        yield Finding("GPU", "torch", f"cannot be imported: {error}", "reinstall torch")
        return
    kinds = (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip))
    yield Finding("GPU", "torch's build", next((f"{kind} {version}" for kind, version in kinds if version), "CPU"))
    reason = cuda.unavailable()
    if reason is not None:
        mend = None
        if NVIDIA_DRIVER.exists():
            mend = "look at nvidia-smi: the driver may be too old for torch, or CUDA_VISIBLE_DEVICES may hide the GPU"
            if torch.version.cuda is None:
                mend = "NVIDIA's driver is here: install a torch that is built with CUDA (pytorch.org has the line)"
        yield Finding("GPU", "devices", f"none: {reason}", mend)
        return
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        free, total = cuda.memory(device)
        major, minor = cuda.capability(device)
        yield Finding(
            "GPU",
            f"cuda:{index}",
            f"{cuda.name(device)}, sm_{major}{minor}, {cuda.num_sms(device)} multiprocessors, "
            f"{free / GIB:.1f} of {total / GIB:.1f} GiB free",
            None if free > total // 2 else "other processes hold more than half of its memory: nvidia-smi names them",
        )


def _model(config: EngineConfig) -> Iterator[Finding]:
    """What would serve the model, by asking each part as the engine does."""
    from octavo.models.spec import ModelSpec
    from octavo.platforms import default_dtype, pick_device

    try:
        spec = ModelSpec.from_folder(config_folder(config), config.overrides)
        device = pick_device(config.device)
    except OctavoError as error:
        yield Finding("model", config.model or "the demo model", str(error), "see the message")
        return
    dtype, reason = default_dtype(spec.dtype if config.dtype == "auto" else config.dtype, device)
    yield Finding("model", "architecture", f"{spec.architecture}, {spec.num_layers} layers of {spec.hidden_size}")
    yield Finding("model", "runs in", f"{dtype} on {device.type}" + (f": {reason}" if reason else ""))
    yield from _attention(config, spec, device, dtype)
    yield from _kernels(config, device, dtype)
    yield from _quantised(config, device, dtype)


def _attention(config: EngineConfig, spec: Any, device: torch.device, dtype: str) -> Iterator[Finding]:
    import torch

    from octavo.attention.base import AttentionSpec
    from octavo.attention.select import select_backend, select_varlen
    from octavo.engine.build_pooling import reads

    asked = AttentionSpec(
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=getattr(torch, dtype),
        device=device,
        block_size=config.block_size,
        max_model_len=config.max_model_len or spec.max_position,
        windows=tuple(dict.fromkeys(spec.windows)),
        latent_dim=0 if spec.latent is None else spec.latent.rank,
        sinks=spec.sinks,
        slopes=spec.slopes is not None,
        chunked=spec.chunked,
    )
    try:
        if reads(config, config_folder(config)):
            varlen, lost = select_varlen(config.attention_backend, asked)
            yield Finding("model", "attention", "; ".join([f"{varlen.name} runs", *lost]))
            return
        backend, lost = select_backend(config.attention_backend, asked)
    except OctavoError as error:
        yield Finding("model", "attention", str(error), "choose another --attention-backend, or auto")
        return
    yield Finding("model", "attention", "; ".join([f"{backend.name} runs", *lost]))
    graphs = "yes" if backend.graph_safe and device.type == "cuda" and not config.enforce_eager else "no"
    why = {"cpu": ": there is no GPU"}.get(device.type, ": --enforce-eager" if config.enforce_eager else "")
    yield Finding("model", "CUDA graphs", graphs if graphs == "yes" else graphs + why)


def _kernels(config: EngineConfig, device: torch.device, dtype: str) -> Iterator[Finding]:
    """The layers' kernels: our own, or torch's."""
    import torch

    from octavo import kernels

    if device.type == "cpu":
        from octavo.kernels.cpu_linear import pack_linear

        packed = pack_linear(torch.zeros(1024, 1024, dtype=getattr(torch, dtype)))
        yield Finding("model", "linear layers", "packed for oneDNN" if packed else "torch's own")
        return
    elementwise = kernels.elementwise_for(device)
    yield Finding(
        "model",
        "fused kernels",
        "Triton" if elementwise else "torch's own",
        None if elementwise else "pip install triton: without it the GPU runs at a fraction of its speed",
    )
    yield Finding("model", "linear layers of few rows", "Triton" if kernels.skinny_for(device) else "cuBLAS")


def _quantised(config: EngineConfig, device: torch.device, dtype: str) -> Iterator[Finding]:
    """What computes with layers that the folder or --quantization quantises, asked of one such matrix."""
    import torch

    from octavo.models.config import read_json
    from octavo.quant.methods import select_method
    from octavo.quant.schemes import E4M3, Float8, Integers, Scheme, Table
    from octavo.quant.sizes import layout_of

    stored = read_json(config_folder(config) / "config.json").get("quantization_config")
    layout = layout_of(stored if isinstance(stored, dict) else {}, config.quantization)
    if layout is None:
        return
    rows, columns = 64, 1024
    scale = torch.ones(rows, columns // layout.group if layout.group and layout.group > 0 else 1)
    code = torch.zeros(rows, columns // (2 if layout.bits <= 4 else 1), dtype=torch.uint8)
    scheme: Scheme
    if layout.kind == "fp8":
        scheme = Float8(code.to(E4M3), scale, dynamic=layout.rounds)
    elif layout.kind == "table":
        scheme = Table(code, scale, torch.zeros(16))
    else:
        whole = code if layout.bits <= 4 else code.to(torch.int8)
        scheme = Integers(whole, scale, torch.zeros_like(scale) if layout.offsets else None, dynamic=layout.rounds)
    method, lost = select_method(scheme, getattr(torch, dtype), device)
    told = "decoded when it is loaded" if method is None else f"{method.name} runs"
    yield Finding("model", "quantised layers", "; ".join([told, *lost]))


def _system(port: int) -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = soft != resource.RLIM_INFINITY and soft < OPEN_FILES
    yield Finding(
        "system", "open files", f"{soft} at most", "ulimit -n 65536 before the server starts" if low else None
    )
    yield from _space("shared memory", Path("/dev/shm"), SHARED_MEMORY, "give the container more: --shm-size 1g")
    cache = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    yield from _space("kernel cache", cache, DISK, "set TRITON_CACHE_DIR to a folder with space that can be written")
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    yield from _space("model cache", hub, DISK, "set HF_HOME to a folder with space that can be written")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            yield Finding("system", f"port {port}", error.strerror or "taken", "stop what uses it, or give --port")
        else:
            yield Finding("system", f"port {port}", "free")


def _space(what: str, place: Path, least: int, mend: str) -> Iterator[Finding]:
    """Whether the folder, or the one that it would be made in, can be written and has space."""
    folder = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    found = f"{place}: {free / GIB:.1f} GiB free" + ("" if writable else ", cannot be written")
    yield Finding("system", what, found, None if writable and free >= least else mend)


def lines(findings: list[Finding]) -> list[str]:
    """For people: findings by topic, then what to mend."""
    shown: list[str] = []
    for topic in dict.fromkeys(finding.topic for finding in findings):
        shown += ["", topic]
        for finding in findings:
            if finding.topic == topic:
                shown.append(f"  {'!!' if finding.mend else 'ok'}  {finding.what:<26} {finding.found}")
    problems = [finding for finding in findings if finding.mend]
    shown += ["", "Nothing needs mending." if not problems else "To mend:"]
    return [*shown[1:], *(f"  {finding.what}: {finding.mend}" for finding in problems)]


def record(findings: list[Finding]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(finding) for finding in findings]
