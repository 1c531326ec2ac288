"""Runs a calibration text through a model, a layer at a time: what each linear layer gets to see, and its rounding.

A layer is run over all pieces of the text with its own weights, which tells what its matrices see; then its matrices
are rounded; then it is run again, so that the next layer sees what this one will give from now on. Matrices become
their rounded values in place: there is one copy of the model.

Legend: T tokens, N rows (out), K columns (in), E hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.attention.base import AttentionBackend, AttentionSpec, ForwardBatch
from octavo.attention.select import select_backend
from octavo.layers.linear import Linear
from octavo.models.decoder import Decoder
from octavo.models.loader import checkpoint_files, fill_from, resolve_dtype
from octavo.models.registry import load_class
from octavo.models.spec import ModelSpec
from octavo.quant.methods import LinearMethod
from octavo.quant.schemes import Plain, Scheme

BLOCK_SIZE = 16


class Watched(LinearMethod):
    """A plain product that looks at its inputs while it is `open`: the sum of x x^T, and the largest |x|."""

    name = "watched"

    @staticmethod
    def supports(scheme: Scheme, dtype: torch.dtype, device: torch.device) -> str | None:
        return None if isinstance(scheme, Plain) else "it is for plain matrices"

    def __init__(self, scheme: Scheme, dtype: torch.dtype) -> None:
        self.weight_NK = scheme.dequantize(dtype)
        self.nbytes = scheme.nbytes
        self.squares = False
        self.open = True
        self.hessian_KK: Tensor | None = None
        self.largest: Tensor | None = None

    def __call__(self, x_TK: Tensor) -> Tensor:
        if self.open:
            largest = x_TK.abs().amax().float()
            self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
            if self.squares:
                wide_TK = x_TK.float()
                if self.hessian_KK is None:
                    columns = wide_TK.shape[1]
                    self.hessian_KK = torch.zeros(columns, columns, device=wide_TK.device)
                self.hessian_KK.addmm_(wide_TK.t(), wide_TK)
        return F.linear(x_TK, self.weight_NK)

    def gated(self, x_TK: Tensor) -> None:
        return None

    def close(self) -> None:
        self.open = False
        self.hessian_KK = None


def load_watched(
    folder: Path, device: torch.device, squares: bool, length: int
) -> tuple[Decoder, dict[str, tuple[Watched, slice]]]:
    """A plain model whose linear layers are watched, and where each of their matrices lies: by path, the rows."""
    spec = ModelSpec.from_folder(folder)
    model = load_class(spec.architecture)(spec, resolve_dtype("auto", spec, device), device, length)
    fill_from(model, checkpoint_files(folder))
    watched: dict[int, Watched] = {}
    for linear in model.linears():
        watched[linear.weight.untyped_storage().data_ptr()] = watch(linear, squares)
    places: dict[str, tuple[Watched, slice]] = {}
    for name, tensor in model.names.items():
        owner = watched.get(tensor.untyped_storage().data_ptr())
        if owner is not None and name.endswith(".weight"):
            first = tensor.storage_offset() // tensor.shape[1]
            places[name.removesuffix(".weight")] = (owner, slice(first, first + len(tensor)))
    model.finish()
    return model, places


def watch(linear: Linear, squares: bool) -> Watched:
    method = Watched(Plain(linear.weight), linear.weight.dtype)
    method.squares = squares
    linear.methods, linear.skinny = [method], None
    return method


def watched_in(model: Decoder, layer: int) -> list[Watched]:
    methods = [method for linear in model.layers[layer].linears() for method in linear.methods]
    return [method for method in methods if isinstance(method, Watched)]


@torch.inference_mode()
def run_layers(model: Decoder, pieces: list[list[int]], done: Callable[[int], None]) -> None:
    """`done` is called with each layer when its watched matrices have seen all pieces, to change them in place."""
    backend = _attention(model, max(map(len, pieces)))
    batches = [_batch(model, ids, backend) for ids in pieces]
    states: list[tuple[Tensor, Tensor | None]] = [(model.embed_tokens(batch), None) for batch in batches]
    for index, layer in enumerate(model.layers):
        layer.attention.layer = 0  # the cache is one layer's, which nobody reads later

        def passes() -> Iterator[tuple[Tensor, Tensor | None]]:
            for batch, (x_TE, stream_TE) in zip(batches, states, strict=True):
                backend.plan(batch)
                # A layer adds to the stream in place.
                kept = None if stream_TE is None else stream_TE.clone()
                yield layer(x_TE.clone(), kept, model.rotations(batch), batch)  # noqa: B023

        for _ in passes():
            pass
        done(index)
        for method in watched_in(model, index):
            method.close()
        for i, state in enumerate(passes()):
            states[i] = state


def _attention(model: Decoder, length: int) -> AttentionBackend:
    spec = model.spec
    asked = AttentionSpec(
        num_layers=1,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=model.dtype,
        device=model.device,
        block_size=BLOCK_SIZE,
        max_model_len=model.max_len,
        windows=tuple(dict.fromkeys(spec.windows)),
        max_num_seqs=1,
        latent_dim=0 if spec.latent is None else spec.latent.rank,
        sinks=spec.sinks,
        slopes=spec.slopes is not None,
        chunked=spec.chunked,
    )
    backend: AttentionBackend = select_backend("auto", asked)[0](asked, -(-length // BLOCK_SIZE))
    return backend


def _batch(model: Decoder, ids: list[int], backend: AttentionBackend) -> ForwardBatch:
    """One sequence, from its first token on, in the first blocks of the cache."""
    count, device = len(ids), model.device
    single = int(count == 1)
    return ForwardBatch(
        token_ids_T=torch.tensor(ids, device=device),
        positions_T=torch.arange(count, device=device),
        slots_T=torch.arange(count, device=device),
        query_start_N1=torch.tensor([0, count], dtype=torch.int32, device=device),
        context_lens_N=torch.tensor([count], dtype=torch.int32, device=device),
        block_table_NB=torch.arange(-(-count // BLOCK_SIZE), dtype=torch.int32, device=device)[None],
        num_single=single,
        max_query_len=count,
        max_context_len=count,
        attention=backend,
        query_lens=[count][single:],
        context_lens=[count][single:],
    )
