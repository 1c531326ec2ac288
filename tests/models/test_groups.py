"""Layers in groups of equal size, by what they see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.models.groups import MOST, LayerGroups


@pytest.mark.parametrize(
    ("windows", "size", "groups"),
    [
        ([1024] * 5 + [None], 1, 6),
        (([1024] * 5 + [None]) * 8, 8, 6),  # Gemma 3 12B
        (([1024] * 5 + [None]) * 10 + [1024] * 2, 10, 7),  # Gemma 3 27B: the last group has two layers
        ([128, None] * 12, 12, 2),  # GPT-OSS
        ([4096] * 32, 32, 1),
        ([None] * 32, 32, 1),
        ([8192] * 4, 4, 1),
    ],
)
def test_of_models(windows, size, groups):
    found = LayerGroups.of(windows, 8192)
    assert (found.size, len(found.windows)) == (size, groups)
    assert set(found.windows) == {None if window == 8192 else window for window in windows}


@given(st.lists(st.sampled_from([None, 4, 8, 16]), min_size=1, max_size=70))
def test_every_layer_has_a_place(windows):
    found = LayerGroups.of(windows, 16)
    assert len(set(found.places)) == len(windows) and len(found.windows) <= MOST + 2
    for window, (group, index) in zip(windows, found.places, strict=True):
        assert found.windows[group] == (None if window == 16 else window) and 0 <= index < found.size
