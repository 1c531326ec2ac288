"""From a folder to a model. Only safetensors files are ever opened, memory-mapped, and nothing in them is trusted.

The checkpoint and the model must agree exactly: every tensor of the model arrives once and every tensor of the
checkpoint has its place, or the error names it. Each is copied from the mapped file straight to where it lives.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import ModelError
from octavo.models.config import ConfigReader, read_json
from octavo.models.decoder import Decoder
from octavo.models.gguf import fill_from_gguf
from octavo.models.pooling.files import PoolingSpec
from octavo.models.pooling.model import Part, PoolingModel
from octavo.models.quantized import QuantizedWeights
from octavo.models.registry import load_class
from octavo.models.spec import DTYPES, ModelSpec
from octavo.models.staging import Copier
from octavo.platforms import default_dtype
from octavo.quant import METHODS, ONLINE
from octavo.quant.formats import read_format

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = ("BF16", "F16", "F32", "F64")
PROGRESS_BYTES = 2 << 30  # smaller models load before a bar would be read


def load_model(
    folder: Path,
    *,
    dtype: str = "auto",
    device: torch.device | None = None,
    load_format: str = "auto",
    seed: int = 0,
    max_model_len: int | None = None,
    progress: bool | None = None,
    quantization: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> Decoder:
    """The model of a folder, ready to run on `device` (default: the CPU) for sequences up to `max_model_len`.

    `load_format="dummy"` reads the config alone and draws the weights. `progress=None` shows a bar for large models
    on a terminal. `quantization`, one of octavo.quant.ONLINE, quantises plain weights while they are loaded; what a
    checkpoint in a known format says of itself needs no word. `on_tensor` hears of each tensor that has been read,
    perhaps in another thread. `overrides` stand for what config.json says.
    """
    spec = ModelSpec.from_folder(folder, overrides)
    model = make_model(spec, dtype, device or torch.device("cpu"), max_model_len)
    if load_format != "dummy" and (gguf := gguf_file(folder)) is not None:
        if quantization not in (None, "gguf"):
            raise ModelError(f"quantization: must be left out, not {quantization}: {gguf.name} is quantised already")
        fill_from_gguf(model, gguf, on_tensor)
        model.finish()
        log_methods(model)
        return model
    fill(model, folder, load_format, seed, progress, quantization, on_tensor)
    return model


def load_pooling_model(
    folder: Path,
    pooling: PoolingSpec,
    *,
    dtype: str = "auto",
    device: torch.device | None = None,
    load_format: str = "auto",
    seed: int = 0,
    max_model_len: int | None = None,
    quantization: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> PoolingModel:
    """The model of a folder without what generates, and with what pools. As `load_model`."""
    spec = ModelSpec.from_folder(folder, overrides)
    model = PoolingModel(make_model(spec, dtype, device or torch.device("cpu"), max_model_len), pooling)
    if load_format != "dummy":
        if gguf_file(folder) is not None:
            raise ModelError(f"{folder}: models in GGUF files cannot pool; safetensors are needed")
        for part, dense in zip(model.parts, pooling.dense, strict=True):
            fill_from(part, checkpoint_files(dense.folder))
    fill(model, folder, load_format, seed, None, quantization, on_tensor)
    return model


def make_model(spec: ModelSpec, dtype: str, device: torch.device, max_model_len: int | None) -> Decoder:
    """Without weights."""
    resolved = resolve_dtype(dtype, spec, device)
    return load_class(spec.architecture)(spec, resolved, device, max_model_len or spec.max_position)


def fill(
    model: Decoder | PoolingModel,
    folder: Path,
    load_format: str,
    seed: int,
    progress: bool | None,
    quantization: str | None,
    on_tensor: Callable[[], None],
) -> None:
    """Brings weights, from the folder's safetensors or at random, and finishes the model."""
    quantized = find_quantization(model, folder, quantization, load_format == "dummy")
    if load_format == "dummy":
        fill_random(model, seed, quantized)
    else:
        fill_from(model, checkpoint_files(folder), progress, quantized, on_tensor)
    model.finish()
    if quantized is not None:
        log_methods(model)


def log_methods(model: Decoder | PoolingModel) -> None:
    """How many products of quantised layers each method computes, and what experts of layers are kept as."""
    found = Counter(method.name for linear in model.linears() for method in linear.methods)
    found["decoded when loaded"] = sum(not linear.methods for linear in model.linears())
    backends = [experts.backend for experts in model.expert_layers()]
    found.update(f"of experts ({backend.stored})" for backend in backends if backend is not None)
    log.info("quantised layers: %s", ", ".join(f"{count} {name}" for name, count in found.items() if count))


def gguf_file(folder: Path) -> Path | None:
    """The file that has the weights, where no safetensors are."""
    found = sorted(folder.glob("*.gguf"))
    if not found or (folder / INDEX).exists() or (folder / SINGLE).exists():
        return None
    if len(found) > 1:
        raise ModelError(f"{folder} holds {found[0].name} and {found[1].name}: keep the one that is to be loaded")
    return found[0]


def find_quantization(
    model: Decoder | PoolingModel, folder: Path, online: str | None, dummy: bool
) -> QuantizedWeights | None:
    """What the config says of its weights, or what is asked for; None: they are plain, or the family's own business."""
    config = ConfigReader(read_json(folder / "config.json"), str(folder / "config.json"))
    stored = config.section("quantization_config").values if config.has("quantization_config") else {}
    if stored.get("quant_method") in METHODS and not dummy:
        if online is not None and online.removesuffix("_marlin") != stored["quant_method"]:
            raise ModelError(
                f"quantization: must be left out, not {online}: {folder} is quantised already "
                f"({stored['quant_method']})"
            )
        return QuantizedWeights(model, read_format(stored), None)
    if online is None or online.removeprefix("gpt_oss_") == stored.get("quant_method"):
        return None
    if online not in ONLINE:
        raise ModelError(f"quantization: must be one of {', '.join(ONLINE)}, got {online!r:.80}: {folder} is plain")
    return QuantizedWeights(model, None, online)


def resolve_dtype(dtype: str, spec: ModelSpec, device: torch.device) -> torch.dtype:
    """ "auto" is the checkpoint's own, unless the device computes it slowly; then the reason is logged."""
    if dtype == "auto":
        dtype, reason = default_dtype(spec.dtype, device)
        if reason is not None:
            log.warning("dtype: %s instead of %s: %s", dtype, spec.dtype, reason)
    if dtype not in DTYPES:
        raise ModelError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {dtype!r:.80}")
    resolved: torch.dtype = getattr(torch, dtype)
    return resolved


def fill_random(model: Decoder | PoolingModel, seed: int, quantized: QuantizedWeights | None = None) -> None:
    """Normal weights; norms stay one and biases zero, as the layers made them. Same seed and device, same weights.

    Bytes are such that they are small numbers, whether they are scales or packed.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    if quantized is not None:
        quantized.random(model.spec.initializer_range, generator)
    for tensor in model.names.values():
        if tensor.device.type == "meta":
            continue
        if not tensor.is_floating_point():
            tensor.random_(112, 120, generator=generator)
        elif tensor.dim() > 1:
            tensor.normal_(0.0, model.spec.initializer_range, generator=generator)


def checkpoint_files(folder: Path) -> list[Path]:
    """The files that hold the weights: those of the index, else the single one."""
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{folder / INDEX}: weight_map must be an object that names the file of each tensor")
        for name in weight_map.values():
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(f"{folder / INDEX}: weight_map names {name!r:.80}, not a safetensors file beside it")
        files = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        files = [folder / SINGLE]
    for file in files:
        if not file.is_file():
            pickles = sorted(path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}"))
            hint = f"; {pickles[0]} is a pickle, which is never opened: convert it to safetensors" if pickles else ""
            raise ModelError(f"{file} does not exist{hint}")
    return files


def fill_from(
    model: Decoder | PoolingModel | Part,
    files: list[Path],
    progress: bool | None = None,
    quantized: QuantizedWeights | None = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> None:
    """Copies every tensor of the files to its place."""
    names = model.names
    places = {tensor.data_ptr() for tensor in names.values() if tensor.device.type != "meta"}
    if quantized is not None:
        quantized.expect(_renamed(model, files))
    loaded: dict[str, Path] = {}
    with _bar(sum(file.stat().st_size for file in files), progress) as bar, Copier(model.device) as copy:

        def advance(size: int) -> None:
            bar(size)
            on_tensor()

        for file in files:
            with opened(file) as checkpoint:
                for stored in checkpoint.keys():  # noqa: SIM118 (a safe_open cannot be iterated)
                    name = model.rename(stored)
                    if name is None:
                        continue
                    if quantized is not None and quantized.take(name, checkpoint.get_tensor(stored)):
                        advance(checkpoint.get_tensor(stored).nbytes)
                        continue
                    if name not in names:
                        raise ModelError(f"{file}: tensor {stored} has no place in {model.spec.architecture}")
                    if name in loaded:
                        raise ModelError(f"{file}: tensor {stored} is in {loaded[name].name} too")
                    loaded[name] = file
                    source = _checked(checkpoint, stored, names[name], file)
                    if names[name].data_ptr() in places:
                        places.discard(names[name].data_ptr())
                        copy(names[name], source, advance)
                        continue
                    copy.wait()
                    if not torch.equal(names[name], source.to(names[name])):
                        hint = "set tie_word_embeddings to false"
                        raise ModelError(f"{file}: tensor {stored} differs from the one it is tied to; {hint}")
    missing = []
    if quantized is not None:
        missing = quantized.missing()
        places -= quantized.filled
    missing += [name for name, tensor in names.items() if tensor.device.type != "meta" and tensor.data_ptr() in places]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"{files[0].parent}: tensor {missing[0]}{others} is missing from the checkpoint")


def _renamed(model: Decoder | PoolingModel | Part, files: list[Path]) -> list[str]:
    """The names of all tensors of the files that the model wants."""
    found: list[str | None] = []
    for file in files:
        with opened(file) as checkpoint:
            found += [model.rename(stored) for stored in checkpoint.keys()]  # noqa: SIM118
    return [name for name in found if name is not None]


def _checked(checkpoint: Any, name: str, target: Tensor, file: Path) -> Tensor:
    """A tensor of a file, still on disk, that fits its target."""
    view = checkpoint.get_slice(name)
    shape, dtype = list(view.get_shape()), view.get_dtype()
    known = FLOATS if target.is_floating_point() else ("U8",)
    if dtype not in known:
        raise ModelError(f"{file}: tensor {name} has the type {dtype}; expected one of {', '.join(known)}")
    if shape != list(target.shape):
        raise ModelError(f"{file}: tensor {name} has the shape {shape}; the config asks for {list(target.shape)}")
    source: Tensor = checkpoint.get_tensor(name)
    return source


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A mapped safetensors file. The library checks header, offsets and overlaps; here its complaint gets a name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as checkpoint:
            yield checkpoint
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a sound safetensors file: {error}") from None


@contextmanager
def _bar(total: int, wanted: bool | None) -> Iterator[Any]:
    """A progress bar on stderr; yields what advances it by a number of bytes."""
    if wanted is None:
        wanted = total > PROGRESS_BYTES and sys.stderr.isatty()
    if not wanted:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("Loading weights"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.advance(task, done)
