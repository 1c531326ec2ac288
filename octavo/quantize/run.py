"""Quantises a model folder into another one.

Matrices of linear layers and of experts are rounded, all else is copied; what has one place in the model is found by
building the model without memory. Without calibration tensors go from file to file, one at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.core.errors import ConfigError, ModelError
from octavo.models.config import read_json
from octavo.models.decoder import Decoder
from octavo.models.loader import checkpoint_files, opened
from octavo.models.registry import load_class
from octavo.models.spec import ModelSpec
from octavo.platforms import pick_device
from octavo.quant.formats import matches
from octavo.quant.pack import E4M3_MAX
from octavo.quantize.calibrate import Watched, load_watched, run_layers
from octavo.quantize.gptq import gptq
from octavo.quantize.layout import stored
from octavo.quantize.output import Output
from octavo.quantize.recipe import Recipe
from octavo.quantize.rounding import Rounded
from octavo.quantize.texts import read_pieces
from octavo.text.tokenizer import load_tokenizer

PAUSE = 5.0  # seconds between two lines of progress
PLAIN = {"head": "the head", "router": "routers", "shared_router": "routers"}  # parts that are never rounded
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(slots=True)
class Report:
    """What was done: modules that were rounded, and those that stay plain, with the reason."""

    rounded: list[str] = field(default_factory=list)
    plain: dict[str, str] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0


def quantize_folder(
    source: Path,
    folder: Path,
    recipe: Recipe,
    *,
    calibration: Path | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """`tell` hears of progress. Raises ConfigError that names the flag, or ModelError."""
    config = read_json(source / "config.json")
    if config.get("quantization_config") is not None:
        raise ConfigError(f"MODEL {source} is quantised already: its config.json has a quantization_config")
    if recipe.calibrated and calibration is None:
        why = "--method gptq" if recipe.method == "gptq" else f"--scheme {recipe.scheme.name}"
        raise ConfigError(f"{why} needs --calibration FILE, a text like those that the model will read")
    spec = ModelSpec.from_folder(source)
    shapes = load_class(spec.architecture)(spec, torch.bfloat16, torch.device("meta"), 16)
    report = Report()
    chosen = choose(shapes, source, recipe, report)
    job = _Job(source, Output(folder, source, overwrite), recipe, chosen, pick_device(device), report, tell)
    if recipe.calibrated:
        assert calibration is not None
        job.calibrated(shapes, calibration)
    job.rest(shapes)
    job.output.close({**config, "quantization_config": recipe.config(sorted(report.plain))})
    report.bytes_after = job.output.total
    return report


def choose(shapes: Decoder, source: Path, recipe: Recipe, report: Report) -> dict[str, str]:
    """Modules that are to be rounded, by the names of their matrices in the checkpoint; notes why others are not."""
    names = shapes.names
    linears = {_memory(linear.weight) for linear in shapes.linears()}
    plain = {shapes.paths[part]: reason for part, reason in PLAIN.items() if part in shapes.paths}
    chosen: dict[str, str] = {}
    report.plain[shapes.paths["head"]] = PLAIN["head"]  # tied to the embedding, it is not in the checkpoint
    for file in checkpoint_files(source):
        with opened(file) as checkpoint:
            for name in checkpoint.keys():  # noqa: SIM118 (a safe_open cannot be iterated)
                target = names.get(shapes.rename(name) or "")
                if target is None or target.dim() != 2 or not name.endswith(".weight"):
                    continue
                path = name.removesuffix(".weight")
                if path == shapes.paths["embed"]:
                    continue
                reason = next((why for part, why in plain.items() if f".{path}".endswith(f".{part}")), None)
                if reason is not None:
                    pass
                elif matches(path, recipe.ignore):
                    reason = "named by --ignore"
                elif not target.is_contiguous():
                    reason = "stored transposed"
                elif not recipe.grid.fits(target.shape[1]):
                    reason = f"groups of {recipe.group_size} do not divide {target.shape[1]} columns"
                elif recipe.static and _memory(target) not in linears:
                    raise ConfigError(f"--scheme fp8 measures no activations of {path}; take fp8-dynamic")
                if reason is None:
                    chosen[name] = path
                else:
                    report.plain[path] = reason
    for pattern in recipe.ignore:
        if not any(matches(path, (pattern,)) for path in (*report.plain, *chosen.values())):
            raise ConfigError(f"--ignore {pattern} matches no matrix of MODEL")
    if not chosen:
        raise ConfigError(f"MODEL {source} has no matrix that --scheme {recipe.scheme.name} can round")
    return chosen


class _Job:
    def __init__(
        self,
        source: Path,
        output: Output,
        recipe: Recipe,
        chosen: dict[str, str],
        device: torch.device,
        report: Report,
        tell: Callable[[str], None],
    ) -> None:
        self.source, self.output, self.recipe, self.device = source, output, recipe, device
        self.chosen, self.report, self.tell = chosen, report, tell
        self.dtype: torch.dtype = getattr(torch, ModelSpec.from_folder(source).dtype)
        self.written: set[str] = set()  # names of the checkpoint that are done

    def put(self, name: str, rounded: Rounded, input_scale: Tensor | None = None) -> None:
        """A matrix of the checkpoint has been rounded."""
        path = self.chosen[name]
        for suffix, tensor in stored(self.recipe.scheme, rounded, self.dtype, input_scale).items():
            self.output.add(f"{path}.{suffix}", tensor)
        self.written.add(name)
        self.report.rounded.append(path)

    def calibrated(self, shapes: Decoder, calibration: Path) -> None:
        """Linear layers, by what they see of a text."""
        recipe = self.recipe
        length = min(recipe.length, shapes.spec.max_position)
        pieces = read_pieces(calibration, load_tokenizer(self.source), recipe.samples, length)
        tokens = sum(map(len, pieces))
        self.tell(f"calibration: {tokens} tokens in {len(pieces)} pieces; loading the model")
        model, places = load_watched(self.source, self.device, recipe.method == "gptq", length)
        if max(map(max, pieces)) >= model.spec.vocab_size:
            raise ModelError(f"{self.source}: the tokenizer has tokens that the model does not know")
        renamed = {shapes.rename(name): name for name in self.chosen}
        of_layer: dict[int, list[tuple[str, Watched, slice]]] = {}
        homes = {id(m): i for i, layer in enumerate(model.layers) for part in layer.linears() for m in part.methods}
        for path, (method, rows) in places.items():
            if (name := renamed.get(f"{path}.weight")) is not None:
                of_layer.setdefault(homes[id(method)], []).append((name, method, rows))

        def done(layer: int) -> None:
            began = time.monotonic()
            error = max((self._see(*part) for part in of_layer.get(layer, [])), default=0.0)
            self.tell(
                f"layer {layer + 1} of {len(model.layers)}: largest error of a matrix {100 * error:.2f} %, "
                f"{time.monotonic() - began:.1f} s"
            )

        run_layers(model, pieces, done)

    def _see(self, name: str, method: Watched, rows: slice) -> float:
        """Rounds some rows of a watched matrix; the share of the products' square sum that is lost."""
        recipe = self.recipe
        weight_NK = method.weight_NK[rows]
        if method.hessian_KK is not None:
            rounded = gptq(weight_NK, method.hessian_KK, recipe.grid, self.dtype, recipe.dampening, recipe.act_order)
        else:
            rounded = recipe.grid.round(weight_NK, self.dtype)
        input_scale = None
        if recipe.static:
            assert method.largest is not None
            input_scale = (method.largest / E4M3_MAX).clamp(min=1e-6)
        self.put(name, rounded, input_scale)
        plain_NK, kept_NK = weight_NK.float(), rounded.dequantize()
        lost_NK = kept_NK - plain_NK
        weight_NK.copy_(kept_NK)
        if method.hessian_KK is not None:
            lost, all_ = (((part @ method.hessian_KK) * part).sum() for part in (lost_NK, plain_NK))
        else:
            lost, all_ = lost_NK.square().sum(), plain_NK.square().sum()
        return math.sqrt(float(lost / all_.clamp(min=1e-30)))

    def rest(self, shapes: Decoder) -> None:
        """What calibration has not done: rounded to nearest, or copied."""
        files = checkpoint_files(self.source)
        said = time.monotonic()
        for number, file in enumerate(files, 1):
            with opened(file) as checkpoint:
                for name in checkpoint.keys():  # noqa: SIM118
                    tensor = checkpoint.get_tensor(name)
                    self.report.bytes_before += tensor.nbytes
                    if name in self.written:
                        continue
                    if name not in self.chosen:
                        self.output.add(name, tensor)
                        continue
                    expected = shapes.names[shapes.rename(name) or ""].shape
                    if tensor.shape != expected or tensor.dtype not in FLOATS:
                        raise ModelError(
                            f"{file}: tensor {name} is {list(tensor.shape)} in {tensor.dtype}; "
                            f"the config asks for {list(expected)}"
                        )
                    self.put(name, self.recipe.grid.round(tensor.to(self.device), self.dtype))
                    if time.monotonic() - said > PAUSE:
                        said = time.monotonic()
                        self.tell(f"{len(self.report.rounded)} of {len(self.chosen)} matrices are rounded")
            self.tell(f"file {number} of {len(files)}: {len(self.report.rounded)} matrices are rounded")


def _memory(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata
