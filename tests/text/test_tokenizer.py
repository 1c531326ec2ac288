"""Token ids and texts equal transformers' for the same folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.errors import ConfigError, RequestError
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.vocabularies import KINDS, folder_of, save, tokenizer_json

TEXTS = [
    "",
    " ",
    "Hello wörld. สวัสดี 😀👩\u200d🚀 日本語 don't  x",
    "<s>[INST] hi [/INST] foo</s> bar",
    "  two</s>  <s>x\n\n\nthree\x00",
    "<|begin|> <|end|><think>naïve é <｜tool｜>",
    "a <extra> b<image> c",
]


def reference(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def assert_equal(ours: Tokenizer, theirs: Any) -> None:
    assert ours.vocab_size == len(theirs)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False), text
        ids = ours.encode(text)
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    for token_id in range(len(theirs)):
        assert ours.id_to_token(token_id) == theirs.convert_ids_to_tokens(token_id)
        assert ours.decode([token_id]) == theirs.decode([token_id], skip_special_tokens=True)
    assert ours.all_special_ids >= set(theirs.all_special_ids) - {None}
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(kind: str) -> None:
    ours, theirs = load_tokenizer(folder_of(kind)), reference(folder_of(kind))
    assert_equal(ours, theirs)
    assert ours.encode_batch(TEXTS) == [theirs.encode(text) for text in TEXTS]


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_and_any_tokens(kind: str) -> None:
    ours, theirs = load_tokenizer(folder_of(kind)), reference(folder_of(kind))

    @given(st.text(max_size=30), st.lists(st.integers(0, ours.vocab_size + 3), max_size=20), st.booleans())
    @settings(max_examples=100, deadline=None)
    def check(text: str, ids: list[int], skip: bool) -> None:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)

    check()


EXTRA = {"content": "<extra>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
IMAGE = {"content": "<image>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
LATE = {"700": {**EXTRA, "special": False}, "701": {**IMAGE, "special": True}}
OVERRIDES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama2", {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}, {}),
    ("llama2", {"tokenizer_class": "LlamaTokenizerFast", "legacy": True}, {}),
    ("llama2", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, {}),
    ("llama2", {"tokenizer_class": "LlamaTokenizer"}, {"config.json": {"model_type": "mistral"}}),
    ("byte_level", {"tokenizer_class": "LlamaTokenizerFast"}, {}),
    ("byte_level", {"add_bos_token": False, "add_eos_token": True}, {}),
    ("byte_level", {"added_tokens_decoder": LATE}, {}),
    ("byte_level", {"added_tokens_decoder": LATE, "eos_token": "<extra>", "additional_special_tokens": ["<z>"]}, {}),
    ("byte_level", {"image_token": "<image>", "extra_special_tokens": ["<extra>"]}, {}),
    ("byte_level", {"extra_special_tokens": {"image_token": "<image>"}}, {}),
    ("byte_level", {"split_special_tokens": True}, {}),
    ("byte_level", {"eos_token": {"__type": "AddedToken", **EXTRA, "special": True}}, {}),
    ("byte_level", {}, {"special_tokens_map.json": {"eos_token": EXTRA, "bos_token": "<image>"}}),
    ("byte_level", {}, {"added_tokens.json": {"<extra>": 425, "<image>": 424}}),
    ("byte_level", {"additional_special_tokens": ["<extra>"]}, {"added_tokens.json": {"<extra>": 424, "<|end|>": 1}}),
]


@pytest.mark.parametrize(("kind", "config", "files"), OVERRIDES)
def test_config_files(tmp_path: Path, kind: str, config: dict[str, Any], files: dict[str, Any]) -> None:
    save(tmp_path, kind, **config)
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    assert_equal(load_tokenizer(tmp_path), reference(tmp_path))


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    save(tmp_path, "byte_level")
    content = json.loads(tokenizer_json("byte_level"))
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "<|end|>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    plain = load_tokenizer(folder_of("byte_level"))
    tokenizer = load_tokenizer(tmp_path)
    for text in ("a", "a much longer text than three tokens"):
        assert tokenizer.encode(text) == plain.encode(text) == reference(tmp_path).encode(text)


def test_token_bytes_are_the_bytes_of_the_text() -> None:
    text = "Grüße 😀 日本語 <｜tool｜>x"
    for kind in ("byte_level", "llama2", "gemma"):
        tokenizer = load_tokenizer(folder_of(kind))
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(map(tokenizer.token_bytes, ids)).decode().strip() == text
        assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b"" == tokenizer.token_bytes(-1)
    llama = load_tokenizer(folder_of("llama2"))
    ids = [llama.token_to_id(token) for token in ("<0xE2>", "▁the", "<s>")]
    assert [llama.token_bytes(token_id) for token_id in ids if token_id is not None] == [b"\xe2", b" the", b"<s>"]


def test_end_ids_are_all_that_the_model_names(tmp_path: Path) -> None:
    save(tmp_path, "byte_level")
    generation, config = tmp_path / "generation_config.json", tmp_path / "config.json"
    assert load_tokenizer(tmp_path).eos_ids == (1,)
    config.write_text('{"eos_token_id": 7}')
    assert load_tokenizer(tmp_path).eos_ids == (1, 7)
    generation.write_text('{"eos_token_id": [9, 421, 9], "bos_token_id": 3}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_ids, tokenizer.eos_id, tokenizer.bos_id) == ((1, 9, 421), 1, 0)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_ids, tokenizer.eos_id, tokenizer.bos_id) == ((9, 421), 9, 3)
    generation.unlink()
    config.write_text('{"eos_token_id": null, "text_config": {"eos_token_id": 4}}')
    assert load_tokenizer(tmp_path).eos_ids == (4,)
    config.unlink()
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_ids, tokenizer.eos_id, tokenizer.bos_id) == ((), None, None)


def test_templates_are_found_where_they_may_be(tmp_path: Path) -> None:
    def templates(**config: Any) -> dict[str, str]:
        return load_tokenizer(save(tmp_path, "byte_level", **config)).chat_template.templates

    assert templates() == {}
    (tmp_path / "chat_template.json").write_text('{"chat_template": "processor"}')
    assert templates() == {"default": "processor"}
    assert templates(chat_template="config") == {"default": "config"}
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    assert templates(chat_template=named) == {"default": "a", "tool_use": "b"}
    with pytest.raises(ConfigError, match="chat templates"):
        templates(chat_template=[{"name": "default"}])
    (tmp_path / "chat_template.jinja").write_text("file")
    assert templates(chat_template="config") == {"default": "file"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert templates(chat_template="config") == {"default": "file", "tool_use": "tools"}
    assert reference(tmp_path).chat_template == {"default": "file", "tool_use": "tools"}


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_is_refused(kind: str) -> None:
    with pytest.raises(RequestError, match="half a character") as caught:
        load_tokenizer(folder_of(kind)).encode_batch(["fine", "a\ud800"])
    assert caught.value.param is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_broken_files_are_named(tmp_path: Path, name: str, content: str) -> None:
    save(tmp_path, "byte_level")
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=name):
        load_tokenizer(tmp_path)


def test_without_tokenizer_json_transformers_converts(tmp_path: Path) -> None:
    model = json.loads(tokenizer_json("byte_level"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "chat_template": "x"}')
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "eos_token_id": 5}')
    tokenizer = load_tokenizer(tmp_path)
    assert_equal(tokenizer, reference(tmp_path))
    assert 5 in tokenizer.eos_ids
    assert tokenizer.pieces(True) is not None
    assert tokenizer.chat_template.templates == {"default": "x"}


def test_a_tokenizer_of_python_code(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert_equal(tokenizer, reference(tmp_path))
    assert tokenizer.decode([1000, *tokenizer.encode("é😀")]) == "é😀"
    assert tokenizer.token_bytes(tokenizer.encode("a")[0]) == b"a"
    assert tokenizer.token_to_id("</s>") == 1
    assert tokenizer.pieces(True) is None
    with pytest.raises(RequestError, match="half a character"):
        tokenizer.encode("a\ud800")


def test_without_tokenizer_json_and_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install octavo\[transformers\]"):
        load_tokenizer(tmp_path)


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "tokenization_own.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass OwnTokenizer: pass\n")
    auto_map = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="no tokenizer can be read"):
        load_tokenizer(tmp_path)
    assert not canary.exists()


def test_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, pathlib; from octavo.text import detokenizer, tokenizer, chat; "
        f"tokenizer.load_tokenizer(pathlib.Path({str(folder_of('llama2'))!r})).encode('a'); "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
