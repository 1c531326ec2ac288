"""Bytes and operations of steps, against counting one by one and against a real model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.bench.hardware import Cost, Device, Use, attended
from octavo.bench.shapes import write_shape
from octavo.models.loader import load_model
from octavo.models.spec import ModelSpec
from tests.builders import make_model
from tests.models.cases import CASES

rows = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=4)


@given(rows, st.none() | st.integers(1, 20))
def test_attention_token_by_token(rows: list[tuple[int, int]], window: int | None) -> None:
    read = seen = 0
    for start, count in rows:
        keys: set[int] = set()
        for position in range(start, start + count):
            mine = range(max(0, position + 1 - (window or 10**9)), position + 1)
            seen += len(mine)
            keys |= set(mine)
        read += len(keys)
    starts_N, counts_N = np.array(rows).T
    assert attended(starts_N, counts_N, window) == (read, seen)


def llama(tmp_path: Path) -> Cost:
    return Cost.of_folder(write_shape("llama-3-8b", tmp_path))


def test_an_8b_step(tmp_path: Path) -> None:
    cost = llama(tmp_path)
    assert cost.layer_bytes + cost.head_bytes == pytest.approx(15.0e9, rel=0.01)  # all weights but the embedding
    assert cost.num_layers * cost.kv_bytes == 128 << 10  # of a token
    moved, flops = cost.step(np.full(64, 511, np.int32), np.ones(64, np.int32), 64)
    assert moved == cost.layer_bytes + cost.head_bytes + (64 * 512 + 64) * (128 << 10)
    weights = (cost.layer_bytes + cost.head_bytes) // 2
    assert flops == 64 * (2 * weights + 32 * 4 * 32 * 128 * 512)
    chunk, _ = cost.step(np.array([0]), np.array([512]), 0)
    assert chunk == cost.layer_bytes + 2 * 512 * (128 << 10)  # no head; keys and values written once and read once


def test_requests_are_their_steps(tmp_path: Path) -> None:
    spec = ModelSpec.from_folder(write_shape("llama-3.2-1b", tmp_path))
    spec = dataclasses.replace(spec, windows=(None, 40) * 8)
    cost = Cost(spec, 10**9, 2)
    lengths = [(0, 50, 4), (16, 30, 4)]
    steps = [(np.array([c for c, _, _ in lengths]), np.array([p - c for c, p, _ in lengths]))]
    steps += [(np.array([p + i for _, p, _ in lengths]), np.ones(2, int)) for i in range(3)]
    whole = [cost.step(starts, counts, 2) for starts, counts in steps]
    assert cost.requests(*np.array(lengths).T, steps=4) == tuple(map(sum, zip(*whole, strict=True)))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "starcoder2"])
def test_weights_of_a_real_model(family: str, tmp_path: Path) -> None:
    model = load_model(make_model(tmp_path, family), dtype="float32")
    cost = Cost(model.spec, model.num_bytes, 4)
    # What is no matrix (norms, biases, learned positions) is little.
    assert cost.layer_bytes == pytest.approx(cost.token_flops / 2 * 4, rel=0.03)


@pytest.mark.parametrize(
    "case", ["mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v3-dense"]
)
def test_weights_with_experts_and_latents(case: str, tmp_path: Path) -> None:
    family, overrides = CASES[case]
    folder = make_model(tmp_path, family, **overrides)
    model = load_model(folder, dtype="float32")
    assert Cost.of_folder(folder).layer_bytes == pytest.approx(
        Cost(model.spec, model.num_bytes, 4).layer_bytes, rel=0.04
    )


def test_steps_read_the_experts_that_are_chosen(tmp_path: Path) -> None:
    family, overrides = CASES["mixtral"]
    cost = Cost.of_folder(make_model(tmp_path, family, **overrides))
    dense = cost.layer_bytes - cost.expert_bytes
    assert cost.matrices(1, 0)[0] == pytest.approx(dense + cost.expert_bytes * cost.top_k / cost.num_experts, rel=1e-3)
    assert dense < cost.matrices(1, 0)[0] < cost.matrices(2, 0)[0] < cost.layer_bytes
    assert cost.matrices(1000, 0)[0] == cost.layer_bytes


def test_a_latent_is_kept_once(tmp_path: Path) -> None:
    family, overrides = CASES["deepseek_v2-dense"]
    cost = Cost.of_folder(make_model(tmp_path, family, **overrides), 2)
    assert cost.kv_bytes == (overrides["kv_lora_rank"] + overrides["qk_rope_head_dim"]) * 2
    halved = Cost.of_folder(make_model(tmp_path, "llama"), 2, kv_itemsize=1)
    assert 2 * halved.kv_bytes == Cost.of_folder(make_model(tmp_path, "llama"), 2).kv_bytes


def test_devices() -> None:
    assert Device.find("NVIDIA H200") == Device("NVIDIA H200", 4.3e12, 780e12, int(139.8 * 2**30))
    assert Device.find("NVIDIA GH200 480GB").flops == 989e12
    assert Device.find("nvidia h100 80gb hbm3", bandwidth=3e12) == Device(
        "nvidia h100 80gb hbm3", 3e12, 989e12, int(79.2 * 2**30)
    )
    assert Device.find("AMD EPYC") == Device("AMD EPYC", None, None)


def test_use() -> None:
    use = Use(8.6e12, 780e12, 4.0, Device.find("H200"))
    assert use.lines() == [
        "Bandwidth use: 2.15 TB/s (50.0% of 4.30 TB/s), 8.60 TB moved",
        "Matrix-rate use: 195.00 TFLOP/s (25.0% of 780.00 TFLOP/s), 780.00 TFLOP computed",
    ]
    assert use.record()["bandwidth_share"] == pytest.approx(0.5) and use.record()["flop_share"] == pytest.approx(0.25)
    unknown = Use(5e6, 2e3, 1.0, Device.find("?"))
    assert unknown.lines()[0] == "Bandwidth use: 5.00 MB/s, 5.00 MB moved"
    assert unknown.record()["bandwidth_share"] is None
