"""Reductions by blocks give what torch's own give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.sampling import blocks

SIZES = [1, 5, 255, 256, 257, 1000, 1024, 5000, 32000, 50257]


def logits(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    """With many ties."""
    return (torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 8).round() / 4


@pytest.fixture(autouse=True, params=[0, 1 << 16], ids=["blocks", "small"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_SMALL", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES)
def test_argmax_is_the_first_of_the_largest(size: int, dtype: torch.dtype) -> None:
    x = logits(7, size).to(dtype)
    value, index = blocks.argmax(x)
    assert torch.equal(value, x.amax(-1))
    first = [row.index(max(row)) for row in x.tolist()]
    assert index.tolist() == first


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_argmax_tells_rows_that_are_not_finite(size: int, bad: float) -> None:
    x = logits(3, size)
    x[1, size // 2] = bad
    assert blocks.not_finite(blocks.argmax(x)[0]).tolist() == [False, True, False]
    x[1] = float("-inf")
    assert blocks.not_finite(blocks.argmax(x)[0]).tolist() == [False, True, False]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 7, 64, 300])
def test_top_k(size: int, k: int) -> None:
    x = torch.randn(5, size, generator=torch.Generator().manual_seed(k))
    k = min(k, size)
    values, ids = blocks.top_k(x, k)
    wanted = x.topk(k)
    assert torch.equal(values, wanted.values)
    assert torch.equal(ids, wanted.indices)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), k=st.integers(1, 40), rows=st.integers(1, 4), seed=st.integers(0, 1000))
def test_top_k_with_ties_and_masks(size: int, k: int, rows: int, seed: int) -> None:
    x = logits(rows, size, seed)
    x[x < 0] = float("-inf")
    k = min(k, size)
    values, ids = blocks.top_k(x, k)
    assert torch.equal(values, x.topk(k).values)
    assert torch.equal(x.gather(1, ids), values)
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("size", SIZES)
def test_sums_and_members(size: int) -> None:
    x = torch.rand(4, size)
    sums = blocks.sums(x)
    assert sums.shape[1] == -(-size // blocks.BLOCK)
    torch.testing.assert_close(sums.sum(-1), x.sum(-1))
    for block in range(sums.shape[1]):
        members = blocks.members(x, torch.full((4,), block), 0.0)
        torch.testing.assert_close(members.sum(-1), sums[:, block])
        torch.testing.assert_close(members[:, 0], x[:, block * blocks.BLOCK])


@pytest.mark.parametrize("size", [300, 32000])
def test_a_row_is_summed_alike_alone_and_in_a_batch(size: int) -> None:
    x = torch.rand(9, size)
    together = blocks.sums(x)
    for row in range(9):
        assert torch.equal(blocks.sums(x[row : row + 1])[0], together[row])


def test_heavier() -> None:
    x = torch.tensor([[0.1, 0.5, 0.4], [0.2, 0.2, 0.6]])
    assert torch.equal(blocks.heavier(x, torch.tensor([0.1, 0.2])), torch.tensor([[0.0, 0.5, 0.4], [0.0, 0.0, 0.6]]))
