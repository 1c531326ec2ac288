"""MXFP4 against the format's definition, and against transformers' own."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.core.errors import ModelError
from octavo.models.loader import SINGLE, load_model
from octavo.quant.mxfp4 import Mxfp4
from tests.builders import edit_config, make_model
from tests.models.cases import CASES
from tests.oracle_attention import PagedSession


def decode(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[X, R, n] of a checkpoint's [X, R, n / 32, 16] and [X, R, n / 32]."""
    scheme = Mxfp4(blocks.flatten(2).flatten(0, 1), scales.flatten(0, 1))
    return scheme.dequantize(dtype).view(*blocks.shape[:2], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_code_and_scale(dtype: torch.dtype) -> None:
    codes = torch.arange(16)
    scales = torch.tensor([0, 1, 100, 126, 127, 128, 200, 250], dtype=torch.uint8)
    blocks = (codes | (15 - codes) << 4).to(torch.uint8).expand(1, 1, len(scales), 16)
    out = decode(blocks, scales.view(1, 1, -1), dtype).view(-1, 32)
    for row, scale in zip(out.double(), scales.tolist(), strict=True):
        for place, value in enumerate(row.tolist()):
            code = place // 2 if place % 2 == 0 else 15 - place // 2
            exponent, fraction = code >> 1 & 3, code & 1
            size = (1 + fraction / 2) * 2 ** (exponent - 1) if exponent else fraction / 2
            assert value == (-size if code & 8 else size) * 2.0 ** (scale - 127)


def test_as_transformers_has_it() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 130, (3, 10, 2), dtype=torch.uint8, generator=generator)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    assert torch.equal(decode(blocks, scales, torch.bfloat16), theirs.transpose(1, 2))


def test_a_checkpoint_as_the_hub_has_it(tmp_path) -> None:
    """GPT-OSS with packed experts gives the logits of the same checkpoint with decoded ones."""
    family, overrides = CASES["gpt_oss"]
    folder = make_model(tmp_path, family, **overrides)
    plain, packed = load_file(folder / SINGLE), {}
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in plain if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, size, rows = plain[name].shape
        blocks = torch.randint(0, 256, (experts, rows, size // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(121, 126, (experts, rows, size // 32), dtype=torch.uint8, generator=generator)
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = decode(blocks, scales, torch.float32).transpose(1, 2).contiguous()
    save_file(plain, folder / SINGLE)
    tokens = list(range(5, 40))
    whole = load_model(folder)
    (wanted,) = PagedSession(whole).step([("a", tokens)])
    others = {name: tensor for name, tensor in plain.items() if f"{name}_blocks" not in packed}
    save_file(others | packed, folder / SINGLE)
    with pytest.raises(ModelError, match="has no place"):
        load_model(folder)
    edit_config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    decoded = load_model(folder)
    (got,) = PagedSession(decoded).step([("a", tokens)])
    assert decoded.num_bytes == whole.num_bytes
    assert torch.equal(got, wanted)
    assert load_model(folder, load_format="dummy").layers[0].mlp.experts.backend is not None
