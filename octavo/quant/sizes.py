"""What quantised layers are in memory, told from a config alone: no tensor is read, torch is not needed.

Schemes (schemes.py) keep codes of one byte or half a byte, and scales and offsets in float32. Those of whole rows are
too few to count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

FLOAT32 = 4
ONLINE_GROUP = 128  # of int4 (pack.py)
MXFP4 = 0.5 + 1 / 32  # bytes a weight


class Layout(NamedTuple):
    """`kind` as schemes have it; `group` None is a whole row; `rounds`: activations are rounded, too."""

    kind: str
    bits: int
    group: int | None = None
    offsets: bool = False
    rounds: bool = False

    @property
    def size(self) -> float:
        """Bytes a weight. Codes of up to four bits take four."""
        each = FLOAT32 / self.group if self.group is not None and self.group > 0 else 0.0
        return (0.5 if self.bits <= 4 else 1.0) + each * (2 if self.offsets else 1)


GGUF = {
    "Q4_0": Layout("int", 4, 32, True),
    "Q8_0": Layout("int", 8, 32),
    "Q4_K": Layout("int", 4, 32, True),
    "Q5_K": Layout("int", 8, 32, True),
    "Q6_K": Layout("int", 8, 16),
}
ONLINE = {
    "fp8": Layout("fp8", 8, rounds=True),
    "int8": Layout("int", 8, rounds=True),
    "int4": Layout("int", 4, ONLINE_GROUP, True),
}


def layout_of(stored: Mapping[str, Any], online: str | None = None) -> Layout | None:
    """Of layers that a quantization_config, or `online` where there is none, quantises; None: they stay as they are.

    Where groups of modules differ, the largest; a config that says nothing of its groups has whole rows.
    """
    match stored.get("quant_method"):
        case "fp8" | "fbgemm_fp8":
            return Layout("fp8", 8, _block(stored.get("weight_block_size")), rounds=True)
        case "compressed-tensors":
            groups = stored.get("config_groups")
            found = [_group(each) for each in groups.values()] if isinstance(groups, dict) else []
            return max(found, key=lambda layout: layout.size, default=None)
        case "gptq" | "awq" | "auto-round":
            return Layout("int", _whole(stored.get("bits")) or 4, _whole(stored.get("group_size")), True)
        case "bitsandbytes":
            return Layout("table", 4, 64) if stored.get("load_in_4bit") else Layout("int", 8)
    return ONLINE.get(online or "")


def expert_size(stored: Mapping[str, Any], layout: Layout | None) -> float | None:
    """Bytes of a weight of experts on a GPU, as `layout` is that of linear layers; None: they are plain, or decoded.

    Tables are decoded, and so is what has its columns in an order of each expert's own.
    """
    if stored.get("quant_method") == "mxfp4":
        return MXFP4
    return None if layout is None or layout.kind == "table" or stored.get("desc_act") is True else layout.size


def gguf_size(types: Mapping[str, int], itemsize: int) -> float:
    """Bytes a weight of matrices of which so many weights are stored in each of GGUF's types, mixed as they are."""
    total = sum(count * (GGUF[name].size if name in GGUF else itemsize) for name, count in types.items())
    return total / max(1, sum(types.values()))


def _group(given: Any) -> Layout:
    """One of compressed-tensors' config_groups."""
    weights = given.get("weights") if isinstance(given, dict) else None
    if not isinstance(weights, dict):
        return Layout("int", 8)
    rounds = given.get("input_activations") is not None
    group = _block(weights.get("block_structure")) or _whole(weights.get("group_size"))
    if weights.get("type") == "float":
        return Layout("fp8", 8, group, rounds=rounds)
    bits = _whole(weights.get("num_bits")) or 8
    return Layout("int", bits, group, bits <= 4 or weights.get("symmetric") is False, rounds)


def _block(value: Any) -> int | None:
    """The columns of [rows, columns]."""
    return _whole(value[1]) if isinstance(value, list) and len(value) == 2 else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None
