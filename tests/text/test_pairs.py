"""Texts and pairs of texts in a bounded number of tokens, as models that read want them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text.tokenizer import load_tokenizer, shares
from tests.builders import save_tokenizer
from tests.pooling_models import use_pair_template


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    use_pair_template(folder)
    return folder


def test_pairs(folder: Path):
    tokenizer = load_tokenizer(folder)
    first, second = (tokenizer.encode(text, False) for text in ("a sheet of paper", "Paris"))
    ids, types = tokenizer.encode_cut(["a sheet of paper", "Paris"])
    assert ids == [0, *first, 2, *second, 2]
    assert list(types) == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert tokenizer.encode_cut(["a sheet of paper"]) == ([0, *first, 2], b"")
    assert tokenizer.encode_cut(["a sheet of paper"], add_special_tokens=False) == (first, b"")


def test_special_tokens_stay(folder: Path):
    tokenizer = load_tokenizer(folder)
    long, short = "word " * 50, "Paris"
    first, second = (tokenizer.encode(text, False) for text in (long, short))
    assert tokenizer.encode_cut([long], 10)[0] == [0, *first[:8], 2]
    assert tokenizer.encode_cut([long], 10, keep_end=True)[0] == [0, *first[-8:], 2]
    assert tokenizer.encode_cut([long, short], 20)[0] == [0, *first[: 17 - len(second)], 2, *second, 2]
    assert tokenizer.encode_cut([long, long], 21)[0] == [0, *first[:9], 2, *first[:9], 2]
    assert tokenizer.encode_cut([long], 1)[0] == [0, 2]  # fewer than the special tokens there cannot be


@given(st.lists(st.integers(0, 40), min_size=1, max_size=2), st.integers(0, 60))
def test_the_longer_text_is_cut_first(lengths: list[int], room: int):
    kept = shares(lengths, room)
    assert all(0 <= some <= all_ for some, all_ in zip(kept, lengths, strict=True))
    assert sum(kept) == min(room, sum(lengths))
    if len(kept) == 2 and kept != lengths:  # whoever is cut has no fewer left than the other, but for an odd one
        cut = [i for i in (0, 1) if kept[i] < lengths[i]]
        assert all(kept[i] >= kept[1 - i] - 1 for i in cut)


def test_a_model_that_is_not_told(folder: Path, tmp_path: Path):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "model_input_names": ["input_ids"]}))
    assert load_tokenizer(tmp_path).encode_cut(["a", "b"])[1] == b""
