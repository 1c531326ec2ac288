"""Matrices that the formats' own tools have quantised, where such a tool is installed: read as the tool reads them."""

from __future__ import annotations

import pytest
import torch

from octavo.quant.formats import read_format


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_4_bits(kind: str, nested: bool) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the package bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight_NK = torch.randn(64, 192, generator=torch.Generator().manual_seed(0))
    packed, state = quantize_4bit(weight_NK, quant_type=kind, compress_statistics=nested)
    parts = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    read = read_format(config).read("layer", {"weight": packed, **parts}, (64, 192))
    expected = dequantize_4bit(packed, state)
    torch.testing.assert_close(read.dequantize(torch.float32), expected, atol=1e-6, rtol=1e-5)


def test_bitsandbytes_8_bits() -> None:
    pytest.importorskip("bitsandbytes", reason="needs the package bitsandbytes")
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    weight_NK = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)).half()
    codes, scale, _ = int8_vectorwise_quant(weight_NK)
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    parts = {"weight": codes, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    read = read_format(config).read("layer", parts, (64, 96))
    expected = int8_vectorwise_dequant(codes, scale).float()
    torch.testing.assert_close(read.dequantize(torch.float32), expected, atol=1e-3, rtol=1e-3)
