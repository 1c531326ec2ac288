"""What a weight of a quantised layer takes in memory, told from a config alone: no tensor is read, torch is not needed.

Schemes (schemes.py) keep codes of one byte or half a byte, and scales and offsets in float32. Those of whole rows are
too few to count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FLOAT32 = 4
GGUF = {"Q4_0": (4, 32, True), "Q8_0": (8, 32, False), "Q4_K": (4, 32, True), "Q5_K": (8, 32, True)}
GGUF |= {"Q6_K": (8, 16, False)}
ONLINE_GROUP = 128  # of int4 (pack.py)


def weight_size(bits: int, group: int | None, offsets: bool) -> float:
    """Bytes a weight; `group` None or -1 is a whole row. Codes of up to four bits take four."""
    each = FLOAT32 / group if group is not None and group > 0 else 0.0
    return (0.5 if bits <= 4 else 1.0) + each * (2 if offsets else 1)


def quantized_size(stored: Mapping[str, Any], online: str | None = None) -> float | None:
    """Of layers that a quantization_config, or `online` where there is none, quantises; None: they stay as they are.

    Where groups of modules differ, the largest; a config that says nothing of its groups has whole rows.
    """
    match stored.get("quant_method"):
        case "fp8" | "fbgemm_fp8":
            block = stored.get("weight_block_size")
            return weight_size(8, _whole(block[1]) if isinstance(block, list) and len(block) == 2 else None, False)
        case "compressed-tensors":
            groups = stored.get("config_groups")
            found = [_group(each) for each in groups.values()] if isinstance(groups, dict) else []
            return max(found, default=None)
        case "gptq" | "awq" | "auto-round":
            return weight_size(_whole(stored.get("bits")) or 4, _whole(stored.get("group_size")), True)
        case "bitsandbytes":
            return weight_size(4, 64, False) if stored.get("load_in_4bit") else weight_size(8, None, False)
    if online == "int4":
        return weight_size(4, ONLINE_GROUP, True)
    return weight_size(8, None, False) if online in ("int8", "fp8") else None


def _group(given: Any) -> float:
    """One of compressed-tensors' config_groups."""
    weights = given.get("weights") if isinstance(given, dict) else None
    if not isinstance(weights, dict):
        return weight_size(8, None, False)
    bits, group = _whole(weights.get("num_bits")) or 8, _whole(weights.get("group_size"))
    block = weights.get("block_structure")
    if isinstance(block, list) and len(block) == 2:
        group = _whole(block[1])
    floats = weights.get("type") == "float"
    return weight_size(bits, group, not floats and (bits <= 4 or weights.get("symmetric") is False))


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def gguf_size(types: Mapping[str, int], itemsize: int) -> float:
    """Of matrices of which so many weights are stored in each of GGUF's types, mixed as they are."""
    total = sum(count * (weight_size(*GGUF[name]) if name in GGUF else itemsize) for name, count in types.items())
    return total / max(1, sum(types.values()))
