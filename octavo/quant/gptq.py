"""GPTQ, AWQ and AutoRound: groups of input columns, packed in int32 words.

GPTQ packs along the input: qweight [K * bits / 32, N], qzeros [G, N * bits / 32], scales [G, N], g_idx [K], each
column one stream of bits. Its first version stores zeros less one. AWQ packs along the output, eight rows of W in a
word in an order of its own: qweight [K, N / 8], qzeros [G, N / 8].
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from octavo.quant.formats import Options, Parts, grouping, integers
from octavo.quant.pack import unpack_bits
from octavo.quant.schemes import Integers

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
WORDS = (torch.int32,)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the row that each place of a word holds


class Gptq:
    def __init__(self, config: Options) -> None:
        self.config = config
        self.bits = config.integer("bits", (2, 3, 4, 8))
        self.group_size = config.integer("group_size", range(-1, 1 << 20), -1)
        version = config.text("checkpoint_format", "gptq")
        if version not in ("gptq", "gptq_v2"):
            raise config.error("checkpoint_format", f"must be gptq or gptq_v2, got {version!r:.80}")
        self.less_one = int(version == "gptq")

    def overrides(self, path: str) -> tuple[int, int]:
        """Bits and group size of a module: GPTQModel's `dynamic` changes them by patterns."""
        rules = self.config.section("dynamic")
        if rules is None:
            return self.bits, self.group_size
        for pattern, change in rules.values.items():
            try:
                found = re.match(pattern.removeprefix("+:"), path) if not pattern.startswith("-:") else None
            except re.error as error:
                raise rules.error(repr(pattern)[:80], f"is no regular expression: {error}") from None
            if found and type(change) is dict:
                own = Options(change, rules.where)
                return (
                    own.integer("bits", (2, 3, 4, 8), self.bits),
                    own.integer("group_size", range(-1, 1 << 20), self.group_size),
                )
        return self.bits, self.group_size

    def read(self, path: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Integers:
        bits, group_size = self.overrides(path)
        return read_gptq(Parts(path, tensors), shape, bits, group_size, self.less_one)


def read_gptq(parts: Parts, shape: tuple[int, int], bits: int, group_size: int, less_one: int) -> Integers:
    rows, columns = shape
    count = _groups(parts, columns, group_size)
    if columns * bits % 32 or rows * bits % 32:
        raise parts.error(f"a matrix of {rows} x {columns} does not fill words of 32 bits with numbers of {bits}")
    words = parts.take("qweight", columns * bits // 32, rows, dtype=WORDS)
    zeros = parts.take("qzeros", count, rows * bits // 32, dtype=WORDS)
    scale_NG = parts.take("scales", count, rows, dtype=FLOATS).float().t().contiguous()
    order_K = grouping(parts, parts.optional("g_idx", columns), count, columns)
    parts.drop("bias")
    parts.done()
    codes_NK = unpack_bits(words.t().contiguous(), bits)
    if order_K is not None:
        codes_NK = codes_NK[:, order_K]
    zero_NG = (unpack_bits(zeros, bits) + less_one).bitwise_and_((1 << bits) - 1).t()
    return integers(codes_NK, bits, scale_NG, zero_NG, order_K)


class Awq:
    def __init__(self, config: Options) -> None:
        config.integer("bits" if "bits" in config.values else "w_bit", (4,))
        self.group_size = config.integer(
            "group_size" if "group_size" in config.values else "q_group_size", range(-1, 1 << 20), 128
        )
        version = config.text("version", "gemm").lower()
        if version != "gemm":
            raise config.error(
                "version", f"must be gemm, the one that checkpoints on the hub have; got {version!r:.80}"
            )
        self.zeros = config.flag("zero_point", True)

    def read(self, path: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Integers:
        return read_awq(Parts(path, tensors), shape, self.group_size)


def read_awq(parts: Parts, shape: tuple[int, int], group_size: int) -> Integers:
    rows, columns = shape
    count = _groups(parts, columns, group_size)
    if rows % 8:
        raise parts.error(f"{rows} rows are not packed by eights")
    words = parts.take("qweight", columns, rows // 8, dtype=WORDS)
    zeros = parts.optional("qzeros", count, rows // 8, dtype=WORDS)
    scale_NG = parts.take("scales", count, rows, dtype=FLOATS).float().t().contiguous()
    parts.drop("bias")
    parts.done()
    return integers(_awq_rows(words), 4, scale_NG, None if zeros is None else _awq_rows(zeros))


def _awq_rows(words: Tensor) -> Tensor:
    """[N, other] from [other, N / 8]."""
    places = torch.tensor(AWQ_ORDER).argsort()
    codes = unpack_bits(words, 4)
    return codes.view(len(codes), -1, 8)[..., places].flatten(-2).t()


class AutoRound:
    """GPTQ's or AWQ's layout, with bits and groups of its own for some modules."""

    def __init__(self, config: Options) -> None:
        self.config = config
        kind = config.text("data_type", "int")
        if kind != "int":
            raise config.error("data_type", f"must be int, got {kind!r:.80}")
        layout = config.text("packing_format", "auto_round:auto_gptq")
        self.bits = config.integer("bits", (2, 3, 4, 8))
        self.group_size = config.integer("group_size", range(-1, 1 << 20), 128)
        if layout not in ("auto_round", "auto_round:auto_gptq", "auto_round:gptq", "auto_round:auto_awq"):
            raise config.error("packing_format", f"{layout!r:.80} is not known")
        self.awq = layout.endswith("awq")
        self.less_one = int(layout != "auto_round")

    def read(self, path: str, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Integers:
        bits, group_size = self.bits, self.group_size
        extra = self.config.section("extra_config")
        own = None if extra is None else extra.section(path)
        if own is not None:
            bits = own.integer("bits", (2, 3, 4, 8), bits)
            group_size = own.integer("group_size", range(-1, 1 << 20), group_size)
        parts = Parts(path, tensors)
        if self.awq and bits == 4:
            return read_awq(parts, shape, group_size)
        return read_gptq(parts, shape, bits, group_size, self.less_one)


def _groups(parts: Parts, columns: int, group_size: int) -> int:
    size = columns if group_size <= 0 else group_size
    if columns % size:
        raise parts.error(f"groups of {size} do not divide {columns} columns")
    return columns // size
