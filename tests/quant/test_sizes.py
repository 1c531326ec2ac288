"""What `octavo plan` reckons for a weight is what the schemes of each format take, once read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.core.gguf.file import TYPES
from octavo.quant import ONLINE
from octavo.quant.formats import read_format
from octavo.quant.gguf import READERS
from octavo.quant.pack import quantize
from octavo.quant.sizes import GGUF, gguf_size, layout_of
from tests.quant.test_checkpoints import CASES

ROWS, COLUMNS = 128, 1024
ROW = 4 / COLUMNS  # a row's scale, which is not counted


@pytest.mark.parametrize("case", CASES)
def test_formats(case: str) -> None:
    layout, config = CASES[case]
    weight = np.random.default_rng(0).normal(size=(ROWS, COLUMNS))
    _, tensors = layout(weight, np.random.default_rng(1))
    scheme = read_format(config).read("x", tensors, (ROWS, COLUMNS))
    order = scheme.tensors.get("order_K")
    taken = (scheme.nbytes - (0 if order is None else order.nbytes)) / (ROWS * COLUMNS)
    found = layout_of(config)
    assert found is not None and found.kind == scheme.kind
    assert found.size == pytest.approx(taken, abs=2.1 * ROW)
    assert found.rounds == (getattr(scheme, "dynamic", False) or scheme.tensors.get("input_scale") is not None)


@pytest.mark.parametrize("method", ONLINE)
def test_while_loading(method: str) -> None:
    taken = quantize(torch.randn(ROWS, COLUMNS), method).nbytes / (ROWS * COLUMNS)
    found = layout_of({}, method)
    assert found is not None and found.size == pytest.approx(taken, abs=1.1 * ROW)


@pytest.mark.parametrize("name", GGUF)
def test_gguf(name: str) -> None:
    kind = next(kind for kind in TYPES.values() if kind.name == name)
    blocks = torch.zeros(ROWS, COLUMNS // kind.values, kind.bytes, dtype=torch.uint8)
    assert GGUF[name].size == READERS[name](blocks).nbytes / (ROWS * COLUMNS)
    assert gguf_size({name: 10, "F32": 30}, 2) == (GGUF[name].size + 3 * 2) / 4


def test_plain() -> None:
    assert layout_of({}) is layout_of({"quant_method": "mxfp4"}) is None
    assert layout_of({"quant_method": "compressed-tensors", "config_groups": "?"}) is None
