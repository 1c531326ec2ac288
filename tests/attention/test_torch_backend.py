"""The torch backend against dense attention in float64, over caches with scattered blocks, full of NaN at first."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.attention import select, torch_backend
from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch
from octavo.attention.select import select_backend
from octavo.attention.torch_backend import TorchAttention
from octavo.core.errors import ConfigError
from octavo.kernels import kv_cache

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def dense(q_QHD: Tensor, k_LKD: Tensor, v_LKD: Tensor, options: AttendOptions, chunked: bool = False) -> Tensor:
    """The queries are the last ones of the context. One query and head at a time, in float64."""
    count, heads, _ = q_QHD.shape
    group = heads // k_LKD.shape[1]
    out = torch.empty(q_QHD.shape, dtype=torch.float64)
    for query in range(count):
        position = len(k_LKD) - count + query
        first = 0 if options.window is None else max(0, position + 1 - options.window)
        if chunked and options.window is not None:
            first = position - position % options.window
        for head in range(heads):
            keys = k_LKD[first : position + 1, head // group].double()
            scores = keys @ q_QHD[query, head].double() * options.scale
            if options.softcap is not None:
                scores = options.softcap * torch.tanh(scores / options.softcap)
            if options.slopes_H is not None:
                scores -= options.slopes_H[head].double() * torch.arange(position - first, -1, -1)
            if options.sinks_H is not None:
                scores = torch.cat((scores, options.sinks_H[head : head + 1].double()))
            weights = torch.softmax(scores, 0)[: position + 1 - first]
            out[query, head] = weights @ v_LKD[first : position + 1, head // group].double()
    return out.flatten(1)


class World:
    """Sequences over one backend: feeds it steps like a runner does and checks every output."""

    def __init__(
        self,
        *,
        dtype=torch.float32,
        heads=(4, 2),
        dim=8,
        block_size=4,
        windows=(None,),
        softcap=None,
        sinks=False,
        slopes=False,
        chunked=False,
        blocks=256,
        seed=0,
        latent=0,
        kv_dtype=None,
    ) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.spec = AttentionSpec(
            num_layers=len(windows),
            num_heads=heads[0],
            num_kv_heads=heads[1],
            head_dim=dim,
            dtype=dtype,
            device=torch.device("cpu"),
            block_size=block_size,
            max_model_len=blocks * block_size,
            windows=tuple(dict.fromkeys(windows)),
            latent_dim=latent,
            kv_dtype=kv_dtype,
            chunked=chunked,
        )
        sinks_H = torch.randn(heads[0], generator=self.generator) if sinks else None
        slopes_H = torch.rand(heads[0], generator=self.generator) if slopes else None
        self.layers = [AttendOptions(1.3 / math.sqrt(dim), window, softcap, sinks_H, slopes_H) for window in windows]
        self.backend = TorchAttention(self.spec, blocks)
        self.tables: list[list[int]] = []
        self.history: list[list[tuple[Tensor, Tensor]]] = []  # of a sequence, of a layer
        self.free = list(range(blocks))
        self.batch: ForwardBatch | None = None
        self._fill_with_nan(blocks * block_size)
        self.random.shuffle(self.free)

    def _fill_with_nan(self, slots: int) -> None:
        """As another sequence may have left it: no comparison survives that any of it counts."""
        row = self.add(in_order=True)
        batch = self._build([row], [slots])
        self.backend.plan(batch)
        nan = torch.full((slots, self.spec.num_kv_heads, self.spec.head_dim), torch.nan).to(self.spec.dtype)
        for layer in range(self.spec.num_layers):
            self.backend.write(layer, nan, nan, batch)
        self.free = self.tables.pop()
        self.history.pop()

    def add(self, in_order: bool = False) -> int:
        if in_order:
            self.free.sort(reverse=True)
        self.tables.append([])
        none = torch.empty(0, self.spec.num_kv_heads, self.spec.head_dim, dtype=self.spec.dtype)
        self.history.append([(none, none)] * self.spec.num_layers)
        return len(self.tables) - 1

    def fork(self, row: int) -> int:
        """A sequence that shares the full blocks of `row` and has its own copy of the last, partial one."""
        child = self.add()
        self.history[child] = list(self.history[row])
        self.tables[child] = list(self.tables[row])
        if len(self.history[row][0][0]) % self.spec.block_size:
            self.tables[child][-1] = self.free.pop()
            self.backend.copy_blocks(torch.tensor(self.tables[row][-1:]), torch.tensor(self.tables[child][-1:]))
        return child

    def _normal(self, tokens: int, heads: int) -> Tensor:
        # Values of a fused projection are a view with gaps.
        size = (tokens, heads + 1, self.spec.head_dim)
        return torch.randn(size, generator=self.generator).to(self.spec.dtype)[:, :heads]

    def _build(self, rows: list[int], counts: list[int]) -> ForwardBatch:
        size = self.spec.block_size
        slots, positions, contexts = [], [], []
        for row, count in zip(rows, counts, strict=True):
            start, table = len(self.history[row][0][0]), self.tables[row]
            while len(table) * size < start + count:
                table.append(self.free.pop())
            positions += range(start, start + count)
            slots += [table[p // size] * size + p % size for p in range(start, start + count)]
            contexts.append(start + count)
        width = max(-(-c // size) for c in contexts)
        tables = [(self.tables[row] + [0] * width)[:width] for row in rows]
        single = sum(count == 1 for count in counts)
        return ForwardBatch(
            token_ids_T=torch.zeros(len(slots), dtype=torch.int64),
            positions_T=torch.tensor(positions),
            slots_T=torch.tensor(slots),
            query_start_N1=torch.tensor([0, *counts]).cumsum(0).int(),
            context_lens_N=torch.tensor(contexts, dtype=torch.int32),
            block_table_NB=torch.tensor(tables, dtype=torch.int32),
            num_single=single,
            max_query_len=max(counts),
            max_context_len=max(contexts),
            attention=self.backend,
            query_lens=counts[single:],
            context_lens=contexts[single:],
        )

    def step(self, parts: list[tuple[int, int]], check: bool = True) -> None:
        """(sequence, tokens) of a step, single tokens first."""
        parts = sorted(parts, key=lambda part: part[1] > 1)
        rows, counts = [row for row, _ in parts], [count for _, count in parts]
        self.batch = self._build(rows, counts)
        self._run(rows, counts, check)

    def steady(self, rows: list[int], check: bool = True) -> None:
        """One more token of each sequence of the step before, in the same batch object."""
        assert self.batch is not None
        new = self._build(rows, [1] * len(rows))
        for field in ("slots_T", "positions_T", "context_lens_N", "block_table_NB", "max_context_len"):
            setattr(self.batch, field, getattr(new, field))
        self.batch.steady = True
        self._run(rows, [1] * len(rows), check)

    def kept(self, x: Tensor) -> Tensor:
        """What a cache makes of it."""
        if not self.spec.quantised:
            return x
        return kv_cache.dequantise(*kv_cache.quantise(x, self.spec.cache_dtype), self.spec.dtype)

    def _run(self, rows: list[int], counts: list[int], check: bool) -> None:
        spec, tokens, batch = self.spec, sum(counts), self.batch
        self.backend.plan(batch)
        for layer, options in enumerate(self.layers):
            q = self._normal(tokens, spec.num_heads)
            k, v = self._normal(tokens, spec.num_kv_heads), self._normal(tokens, spec.num_kv_heads)
            v = k if spec.latent_dim else v
            self.backend.write(layer, k, v, batch)
            out = self.backend.attend(layer, q, batch, options)
            assert out.shape == (tokens, spec.num_heads * spec.value_dim) and out.dtype == spec.dtype
            start = 0
            for row, count in zip(rows, counts, strict=True):
                part = slice(start, start + count)
                old_k, old_v = self.history[row][layer]
                keys, values = torch.cat((old_k, self.kept(k[part]))), torch.cat((old_v, self.kept(v[part])))
                self.history[row][layer] = (keys, values)
                start += count
                if check:
                    expected = dense(q[part], keys, values, options, self.spec.chunked)
                    expected = expected.view(count, -1, spec.head_dim)[..., : spec.value_dim].flatten(1)
                    error = (out[part].double() - expected).abs().max().item()
                    assert error <= TOLERANCE[spec.dtype], f"layer {layer}, sequence {row}: {error}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
def test_mixed_steps(dtype, block_size, heads):
    world = World(dtype=dtype, block_size=block_size, heads=heads, windows=(None, 5, None, 1))
    a, b, c, d = (world.add() for _ in range(4))
    world.step([(a, 1)])  # a prompt of one token
    world.step([(a, 1), (b, 7), (c, 7), (d, 7)])
    world.step([(a, 1), (b, 1), (c, 9), (d, 2)])
    world.step([(b, 1), (a, 1), (d, 1), (c, 1)])
    world.step([(c, 20), (a, 3)])
    world.step([(a, 1), (b, 1), (c, 1), (d, 17)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_dtype", kv_cache.DTYPES, ids=str)
@pytest.mark.parametrize("heads, latent", [((4, 2), 0), ((4, 1), 6)])
def test_a_quantised_cache(dtype, kv_dtype, heads, latent):
    """What is attended to is what the cache makes of keys and values, whether they are in it yet or not."""
    world = World(dtype=dtype, kv_dtype=kv_dtype, heads=heads, latent=latent, windows=(None, 7))
    assert world.spec.kv_bytes_per_block() == (1 if latent else 2) * 2 * heads[1] * 4 * (8 + 2)
    a, b, c = (world.add() for _ in range(3))
    world.step([(a, 9), (b, 9), (c, 2)])
    world.step([(a, 1), (b, 1), (c, 20)])
    world.step([(a, 1), (b, 1)])
    for _ in range(3):
        world.steady([a, b])
    child = world.fork(b)
    world.step([(b, 1), (child, 1)])
    alone = world.add(in_order=True)
    world.step([(alone, 30)])
    world.step([(alone, 1)])


def test_rounding_that_is_forgotten_is_seen(monkeypatch):
    world = World(kv_dtype=torch.int8)
    monkeypatch.setattr(World, "kept", lambda self, x: x)
    with pytest.raises(AssertionError, match="layer 0, sequence"):
        world.step([(world.add(), 9)])


@pytest.mark.parametrize("dtype", kv_cache.DTYPES, ids=str)
def test_quantising(dtype):
    """A value is off by half a step of its head at most; heads do not see each other; zero stays zero."""
    x = torch.randn(50, 3, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1.0, 300.0])[:, None]
    x[0] = 0
    values, scale = kv_cache.quantise(x, dtype)
    found = kv_cache.dequantise(values, scale, torch.float32)
    step = 1 / 254 if dtype == torch.int8 else 1 / 16  # of a head's largest value, of each value
    bound = (
        x.abs().amax(-1, keepdim=True)
        if dtype == torch.int8
        else x.abs().clamp(min=1e-2 * x.abs().amax(-1, keepdim=True))
    )
    assert ((found - x).abs() <= 1.01 * step * bound + 1e-7).all()
    assert not found[0].any()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("block_size", [3, 16])
def test_latents_are_keys_and_values(dtype, block_size):
    world = World(dtype=dtype, block_size=block_size, heads=(6, 1), dim=12, latent=8, windows=(None, 7))
    assert world.spec.kv_bytes_per_block() == 2 * block_size * 12 * dtype.itemsize
    a, b, c = (world.add() for _ in range(3))
    world.step([(a, 9), (b, 9), (c, 2)])
    world.step([(a, 1), (b, 1), (c, 20)])
    world.step([(a, 1), (b, 1), (c, 1)])
    for _ in range(20):
        world.steady([a, b, c])
    child = world.fork(b)
    world.step([(b, 1), (child, 1)])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_soft_cap(dtype):
    world = World(dtype=dtype, windows=(None, 5), softcap=0.7)
    a, b = world.add(), world.add()
    world.step([(a, 5), (b, 9)])
    world.step([(a, 1), (b, 1)])
    world.step([(a, 1), (b, 40)])


@pytest.mark.parametrize("own", ["sinks", "slopes"])
@pytest.mark.parametrize("heads", [(4, 2), (2, 2), (8, 1)])
def test_sinks_and_slopes(heads, own):
    dtype = torch.bfloat16 if heads == (2, 2) else torch.float32
    world = World(windows=(None, 5), heads=heads, dtype=dtype, **{own: True})
    a, b, c = world.add(), world.add(), world.add()
    world.step([(a, 5), (b, 9), (c, 9)])
    world.step([(a, 1), (b, 1), (c, 12)])
    world.step([(a, 1), (b, 40)])
    real = world.backend.attend
    world.backend.attend = lambda *args: real(*args[:-1], dataclasses.replace(args[-1], **{f"{own}_H": None}))
    with pytest.raises(AssertionError, match="layer 0, sequence"):
        decode(world)


def test_a_soft_cap_that_is_forgotten_is_seen():
    world = World(softcap=0.7)
    real = world.backend.attend
    world.backend.attend = lambda *args: real(*args[:-1], dataclasses.replace(args[-1], softcap=None))
    with pytest.raises(AssertionError, match="layer 0, sequence"):
        decode(world)


@pytest.mark.parametrize("heads", [(2, 2), (8, 2)])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_fresh_prompts_of_equal_length(heads, number):
    """More and fewer sequences than key/value heads, next to ones of other lengths."""
    world = World(heads=heads)
    rows = [world.add() for _ in range(number + 2)]
    world.step([(rows[0], 3), *((row, 11) for row in rows[1:-1]), (rows[-1], 4)])


@pytest.mark.parametrize("window", [None, 4, 33])
@pytest.mark.parametrize("in_order", [True, False])
def test_steady_steps(window, in_order):
    """Over many steps: across blocks, past the window, and with groups that are cut anew."""
    world = World(block_size=4, windows=(window,), heads=(2, 1), blocks=400)
    rows = [world.add(in_order) for _ in range(4)]
    world.step([(row, 2 + 3 * i) for i, row in enumerate(rows)])
    world.step([(row, 1) for row in rows])
    for _ in range(70):
        world.steady(rows)
    world.step([(row, 1) for row in rows[1:]])  # one left
    world.steady(rows[1:])


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("window", [None, 6])
def test_one_sequence(in_order, window):
    """Blocks in a row are read in place, others are collected."""
    world = World(block_size=4, windows=(window, None))
    row = world.add(in_order)
    world.step([(row, 5)])
    world.step([(row, 9)])
    world.step([(row, 1)])
    for _ in range(30):
        world.steady([row])


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("chunk", [1, 6, 40])
def test_windows_that_are_chunks(in_order, chunk):
    world = World(block_size=4, windows=(chunk, None), chunked=True, heads=(2, 1), blocks=400)
    rows = [world.add(in_order) for _ in range(3)]
    world.step([(row, 2 + 3 * i) for i, row in enumerate(rows)])
    world.step([(rows[0], 41), (rows[1], 70), (rows[2], 1)])
    world.step([(row, 1) for row in rows])
    for _ in range(20):
        world.steady(rows)
    world.step([(rows[0], 1)])
    for _ in range(7):
        world.steady(rows[:1])
    real = world.backend.spec
    world.backend.spec = dataclasses.replace(real, chunked=False)
    if chunk == 6:  # less than what decode() has
        with pytest.raises(AssertionError, match="layer 0, sequence"):
            decode(world)


def test_unequal_lengths_are_cut_into_groups(monkeypatch):
    monkeypatch.setattr(torch_backend, "GROUP_BYTES", 4096)
    monkeypatch.setattr(torch_backend, "WASTE_BYTES", 1024)
    world = World(windows=(None, 10))
    lengths = [40, 3, 17, 41, 2, 16, 39, 18, 1, 5]
    rows = [world.add() for _ in lengths]
    world.step([(row, length) for row, length in zip(rows, lengths, strict=True)])
    world.step([(row, 1) for row in rows])
    jobs = world.batch.plan.jobs(None)
    assert 3 <= len(jobs) < len(rows)
    for _ in range(10):
        world.steady(rows)


def test_groups_that_grow_are_cut_anew(monkeypatch):
    monkeypatch.setattr(torch_backend, "GROUP_BYTES", 8192)
    world = World()
    rows = [world.add() for _ in range(6)]
    world.step([(row, 10) for row in rows])
    world.step([(row, 1) for row in rows])
    before = len(world.batch.plan.jobs(None))
    for _ in range(40):
        world.steady(rows)
    assert before < len(world.batch.plan.jobs(None)) <= len(rows)


@pytest.mark.parametrize("window", [None, 3, 20, 50])
def test_a_long_chunk_goes_in_pieces(window):
    world = World(windows=(window,))
    row, other = world.add(), world.add()
    world.step([(row, 41), (other, 70)])
    world.step([(row, 33), (other, 97)])


def test_masks_are_of_pieces(monkeypatch):
    masks = []

    def watch(q, k, v, mask=None, **options):
        masks.append(mask.numel())
        return real(q, k, v, mask, **options)

    real = torch_backend.scaled_dot_product_attention
    world = World(heads=(2, 1))
    monkeypatch.setattr(torch_backend, "scaled_dot_product_attention", watch)
    row = world.add()
    world.step([(row, 140)])
    world.step([(row, 160)])
    assert max(masks) == torch_backend.PIECE * 300


def test_forks_share_blocks_and_copy_the_last():
    world = World(block_size=3, windows=(None, 4))
    parent = world.add()
    world.step([(parent, 8)])
    children = [world.fork(parent) for _ in range(3)]
    for _ in range(5):
        world.step([(row, 1) for row in (parent, *children)])
    world.step([(children[1], 1), (parent, 5)])


def test_blocks_are_read_before_any_is_written():
    world = World(block_size=2)
    a, b = world.add(), world.add()
    world.step([(a, 2), (b, 2)])
    (block_a,), (block_b,) = world.tables
    world.backend.copy_blocks(torch.tensor([block_a, block_b]), torch.tensor([block_b, block_a]))
    world.tables.reverse()
    world.step([(a, 1), (b, 1)])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_steps(data):
    heads, group = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from([1, 2, 4]))
    world = World(
        dtype=data.draw(st.sampled_from(list(TOLERANCE))),
        heads=(heads * group, heads),
        dim=data.draw(st.sampled_from([4, 16])),
        block_size=data.draw(st.sampled_from([1, 2, 3, 5, 16])),
        windows=tuple(data.draw(st.lists(st.sampled_from([None, 1, 2, 7, 12]), min_size=1, max_size=2))),
        seed=data.draw(st.integers(0, 99)),
    )
    rows = [world.add(data.draw(st.booleans())) for _ in range(data.draw(st.integers(1, 4)))]
    for _ in range(data.draw(st.integers(1, 3))):
        chosen = data.draw(st.permutations(rows))[: data.draw(st.integers(1, len(rows)))]
        world.step([(row, data.draw(st.one_of(st.just(1), st.integers(1, 14)))) for row in chosen])
    world.step([(row, 1) for row in rows])
    for _ in range(data.draw(st.integers(0, 6))):
        world.steady(rows)


def reveal_a_key(q, k, v, mask=None, scale=None):
    if mask is not None:
        mask = mask.clone()
        first = mask.eq(-torch.inf).flatten().nonzero()
        if len(first):
            mask.view(-1)[first[0]] = 0
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def hide_a_key(q, k, v, mask=None, scale=None):
    return torch.nn.functional.scaled_dot_product_attention(
        q, k[:, :, 1:], v[:, :, 1:], None if mask is None else mask[..., 1:], scale=scale
    )


def forget_the_order(q, k, v, mask=None, scale=None):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, None, scale=scale)


def decode(world: World) -> None:
    a, b = world.add(), world.add()
    world.step([(a, 5), (b, 9)], check=False)
    world.step([(a, 1), (b, 1)])


def prefix(world: World) -> None:
    row = world.add()
    world.step([(row, 5)], check=False)
    world.step([(row, 6)])


def fresh(world: World) -> None:
    world.step([(world.add(), 7)])


@pytest.mark.parametrize(
    "case, planted",
    [
        (decode, reveal_a_key),
        (decode, hide_a_key),
        (prefix, reveal_a_key),
        (prefix, hide_a_key),
        (fresh, forget_the_order),
    ],
)
def test_a_planted_error_is_seen(monkeypatch, case: Callable[[World], None], planted):
    case(World())
    monkeypatch.setattr(torch_backend, "scaled_dot_product_attention", planted)
    with pytest.raises(AssertionError, match="layer 0, sequence"):
        case(World())


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("case", [decode, prefix])
def test_a_window_off_by_one_is_seen(case, by):
    world = World(windows=(4,))
    real = world.backend.attend
    world.backend.attend = lambda *args: real(*args[:-1], dataclasses.replace(args[-1], window=4 + by))
    with pytest.raises(AssertionError, match="layer 0, sequence"):
        case(world)


def spec_for(device: str = "cpu", dtype: torch.dtype = torch.float32) -> AttentionSpec:
    return AttentionSpec(1, 4, 2, 8, dtype, torch.device(device), 16, 128)


def test_selection_says_why_others_lost():
    backend, lost = select_backend("auto", spec_for())
    assert backend is TorchAttention
    assert [line.split(":")[0] for line in lost] == ["hopper cannot", "latent cannot", "triton cannot"]
    assert select_backend("torch", spec_for()) == (TorchAttention, [])


def test_a_backend_that_is_asked_for_must_be_able():
    with pytest.raises(ConfigError, match="triton cannot: "):
        select_backend("triton", spec_for())
    with pytest.raises(ConfigError, match="torch cannot: it cannot compute in torch.int8"):
        select_backend("torch", spec_for(dtype=torch.int8))
    with pytest.raises(ConfigError, match="torch cannot: it is made for CPUs, not cuda"):
        select_backend("torch", spec_for("cuda"))
    with pytest.raises(ConfigError, match="one of auto, hopper, latent, triton, torch, got 'flash'"):
        select_backend("flash", spec_for())


def test_a_module_that_is_missing_is_a_reason():
    backends = (("gone", "octavo.attention.gone", "Gone"), select.BACKENDS[-1])
    backend, (line,) = select_backend("auto", spec_for(), backends)
    assert backend is TorchAttention
    assert line == "gone cannot: No module named 'octavo.attention.gone'"


def test_a_plan_belongs_to_its_batch():
    """A batch that is steady but new, without a plan, gets one."""
    world = World()
    row = world.add()
    world.step([(row, 3)])
    world.step([(row, 1)])
    world.batch = copy.copy(world.batch)
    world.batch.plan = None
    world.steady([row])
