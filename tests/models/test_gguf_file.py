"""A lone GGUF file, written by the gguf package: config, tokenizer and weights come out as they went in."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from octavo import LLM, SamplingParams
from octavo.core.errors import ModelError
from octavo.core.gguf.file import GgufFile
from octavo.core.gguf.folder import make_config
from octavo.core.gguf.tokenizer import CUTS, make_tokenizer
from octavo.core.hub import resolve_model
from octavo.demo import MODEL_DIR
from octavo.models.gguf import LAYERS
from octavo.models.spec import ModelSpec
from octavo.text.tokenizer import load_tokenizer
from tests.builders import CORPUS, SPECIAL_TOKENS, make_model
from tests.quant.test_checkpoints import logprobs

gguf = pytest.importorskip("gguf", reason="needs the package gguf")
Write = Callable[[Any], None]

ODD = (
    "",
    " ",
    "  two  spaces ",
    "\n\n\t tab\r\nline ",
    "don't WE'LL it's 'S",
    "1234567 89,5 3.14159e-10",
    "naïve Straße ﬁ e\u0301 \u00a0\u200b\ufeff",
    "日本語のテキスト 한국어 ไทย العربية",
    "😀👩‍🚀🇫🇷 \U0010ffff",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|><s></s>",
    "▁▁ underscores _ ▁x",
    "def f(x):\n    return {'a': [1, 2]}  # ok\n",
    "".join(map(chr, range(1, 64))),
    *CORPUS,
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def byte_level_keys(writer: Any, spec: dict[str, Any], pre: str) -> None:
    """Of a tokenizer.json."""
    special = {token["content"]: token["special"] for token in spec["added_tokens"]}
    vocabulary = spec["model"]["vocab"] | {token["content"]: token["id"] for token in spec["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([{None: 1, True: 3, False: 4}[special.get(token)] for token in tokens])
    writer.add_token_merges(merges)


def write_model(folder: Path, file: Path, kind: str, pre: str, more: Write = lambda writer: None) -> dict[str, Any]:
    """A model folder as a GGUF file, matrices in Q8_0; the tensors that this stands for, by the hub's names."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, kind)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    byte_level_keys(writer, json.loads((folder / "tokenizer.json").read_text()), pre)
    writer.add_eos_token_id(2)
    template = folder / "chat_template.jinja"
    writer.add_chat_template(template.read_text())
    more(writer)
    names = {hub: own for own, hub in LAYERS[kind].items()}
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    exact: dict[str, Any] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        path, _, suffix = name.rpartition(".")
        if (own := top.get(path)) is None:
            _, _, layer, part = path.split(".", 3)
            own = f"blk.{layer}.{names[part]}"
        values = tensor.float().numpy()
        if kind == "llama" and part_of(own) in ("attn_q", "attn_k"):
            heads = config["num_attention_heads" if own.endswith("q") else "num_key_value_heads"]
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        exact[name] = tensor
        if values.ndim == 1:
            writer.add_tensor(f"{own}.{suffix}", values)
            continue
        kept = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{own}.{suffix}", kept, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        stands = gguf.quants.dequantize(kept, gguf.GGMLQuantizationType.Q8_0)
        if kind == "llama" and part_of(own) in ("attn_q", "attn_k"):
            stands = stands.reshape(heads, -1, 2, stands.shape[1]).swapaxes(1, 2).reshape(stands.shape)
        exact[name] = torch.tensor(stands)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return exact


def part_of(own: str) -> str:
    return own.rpartition(".")[2]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_random_model(tmp_path: Path, kind: str) -> None:
    source = make_model(tmp_path, kind, hidden_size=64, intermediate_size=128, tie_word_embeddings=kind == "qwen3")
    file = tmp_path / "Small-Q8_0.gguf"
    save_file(write_model(source, file, kind, "gpt-2"), source / "model.safetensors")
    (answer, found), (expected_answer, expected) = logprobs(file), logprobs(source)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert answer == expected_answer
    folder = resolve_model(str(file))
    assert folder.name == "Small-Q8_0" and resolve_model(str(file)) == folder
    mine, theirs = ModelSpec.from_folder(folder), ModelSpec.from_folder(source)
    assert mine.dtype == "bfloat16"
    for name in ("vocab_size", "ropes", "windows", "eos_ids", "tie_embeddings", "qkv_bias", "qk_norm", "norm_eps"):
        if name != "norm_eps":  # it is float32 there
            assert getattr(mine, name) == getattr(theirs, name), name
    assert mine.norm_eps == pytest.approx(theirs.norm_eps)


def test_the_demo_model(tmp_path: Path) -> None:
    file = tmp_path / "demo.gguf"
    exact = write_model(MODEL_DIR, file, "llama", "smollm")
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in MODEL_DIR.glob("*.j*"):
        (plain / path.name).write_bytes(path.read_bytes())
    save_file({name: torch.as_tensor(tensor).float() for name, tensor in exact.items()}, plain / "model.safetensors")
    answers, tokenizers = [], []
    for model in (file, plain):
        llm = LLM(str(model), dtype="float32", num_kv_blocks=64)
        params = SamplingParams(temperature=0.0, max_tokens=24)
        (output,) = llm.chat([{"role": "user", "content": "What is the capital of Japan?"}], params)
        answers.append((output.prompt_token_ids, output.outputs[0].text))
        tokenizers.append(load_tokenizer(resolve_model(str(model))))
    assert answers[0] == answers[1] and "Tokyo" in answers[0][1]
    mine, theirs = tokenizers
    for text in ODD:
        ids = theirs.encode(text)
        assert mine.encode(text) == ids, text
        assert mine.decode(ids, False) == theirs.decode(ids, False)
    assert mine.eos_ids == theirs.eos_ids or 2 in mine.eos_ids
    assert mine.all_special_ids == theirs.all_special_ids


def trained(steps: list[dict[str, Any]], normalizer: Any, ignore_merges: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    spec = json.loads(tokenizer.to_str())
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


def header(tmp_path: Path, write: Write) -> GgufFile:
    """A file with metadata only."""
    file = tmp_path / "header.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(file, lists=True)


@pytest.mark.parametrize("pre", CUTS)
def test_byte_level_tokenizers(tmp_path: Path, pre: str) -> None:
    original = trained(CUTS[pre][0], normalizers.NFC() if pre == "qwen2" else None, CUTS[pre][1])
    original.add_tokens([AddedToken("<tool>", special=False, normalized=False)])

    def write(writer: Any) -> None:
        byte_level_keys(writer, json.loads(original.to_str()), pre)
        writer.add_bos_token_id(1)

    made = Tokenizer.from_str(json.dumps(make_tokenizer(header(tmp_path, write))["tokenizer.json"]))
    for text in (*ODD, "a<tool>b"):
        ids = original.encode(text).ids
        assert made.encode(text, add_special_tokens=False).ids == ids, text
        assert made.encode(text).ids == [1] * CUTS[pre][2] + ids
        assert made.decode(ids, False) == original.decode(ids, False)


def test_sentence_piece(tmp_path: Path) -> None:
    """Merges follow from the scores of tokens; what is in no token is bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    splits = [word for text in CORPUS for word in re.findall(r"\S+", text)]
    tokenizer.train_from_iterator(splits * 4, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    original = Tokenizer.from_str(json.dumps(spec))
    vocabulary = spec["model"]["vocab"]
    rank = {"".join(merge): i for i, merge in enumerate(spec["model"]["merges"])}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)

    def write(writer: Any) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([-float(rank.get(token, 1e6)) for token in tokens])
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    files = make_tokenizer(header(tmp_path, write))
    made = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    assert files["tokenizer_config.json"]["bos_token"] == "<s>"
    for text in ODD:
        ids = original.encode(text, add_special_tokens=False).ids
        assert made.encode(text, add_special_tokens=False).ids == ids, text
        assert made.encode(text).ids == [1, *ids]
        assert made.decode(ids) == original_text(text)


def original_text(text: str) -> str:
    """What comes back: special tokens and the first space are not told, and ▁ is a space."""
    told = text.replace("▁", " ").replace("<s>", "").replace("</s>", "")
    return told[1:] if text.startswith((" ", "▁")) else told


def test_scaled_ropes(tmp_path: Path) -> None:
    """Llama 3's frequencies are a tensor; what they divide gives what the config of the hub gives."""
    original = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    original |= {"original_max_position_embeddings": 64, "rope_theta": 10000.0}
    source = make_model(tmp_path, rope_parameters=original)
    (rope,) = set(ModelSpec.from_folder(source).ropes)
    plain = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    factors = (plain / rope.frequencies(512)).numpy().astype(np.float32)
    file = tmp_path / "scaled.gguf"
    write_model(source, file, "llama", "gpt-2", lambda writer: writer.add_tensor("rope_freqs.weight", factors))
    (made,) = set(ModelSpec.from_folder(resolve_model(str(file))).ropes)
    torch.testing.assert_close(made.frequencies(512), rope.frequencies(512))
    assert made.attention_factor == 1.0

    def yarn(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(128)

    write_model(make_model(tmp_path), file, "llama", "gpt-2", yarn)
    (made,) = set(ModelSpec.from_folder(resolve_model(str(file))).ropes)
    assert (made.kind, made.factor, made.original_max_position) == ("yarn", 4.0, 128)


REFUSED: dict[str, tuple[str, Write]] = {
    "architecture": ("mamba", lambda writer: None),
    "parts": ("one of 3 parts", lambda writer: writer.add_uint16("split.count", 3)),
    "experts": ("experts", lambda writer: writer.add_expert_count(8)),
    "embedding": ("token_embd", lambda writer: None),
    "tokenizer": ("gpt2 or llama", lambda writer: writer.add_tokenizer_model("bert")),
    "no tokenizer": ("gpt2 or llama", lambda writer: None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path: Path, case: str) -> None:
    problem, write = REFUSED[case]
    file = header(tmp_path, write)
    if case == "architecture":
        file.metadata["general.architecture"] = "mamba"
    with pytest.raises(ModelError, match=problem):
        make_tokenizer(file) if "tokenizer" in case else make_config(file)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"attention.key_length": math.nan}, "key_length must be a number"),
        ({"attention.key_length": math.inf}, "key_length must be a number"),
        ({"attention.head_count": 5e-324}, "head_count must be whole"),
        ({"attention.head_count": True}, "head_count must be a number"),
        ({"rope.freq_base": "x"}, "freq_base must be a number"),
        ({}, "token_embd.weight is missing, or no matrix"),
    ],
    ids=repr,
)
def test_wrong_numbers(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    file = tmp_path / "a.gguf"
    write_model(make_model(tmp_path), file, "llama", "gpt-2")
    read = GgufFile(file)
    read.metadata |= {f"llama.{name}": value for name, value in change.items()}
    if not change:
        read.tensors = {name: replace(stored, shape=stored.shape[:1]) for name, stored in read.tensors.items()}
    with pytest.raises(ModelError, match=problem):
        make_config(read)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pre": "unheard-of"}, "unheard-of.*how it cuts words"),
        ({"merges": ["a b c"]}, "makes no token"),
        ({"merges": [1]}, "list of str"),
        ({"tokens": ["a", "a"]}, "different from each other"),
        ({"token_type": [1]}, "each with a type"),
    ],
)
def test_wrong_vocabularies(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    spec = json.loads(trained(CUTS["gpt-2"][0], None, False).to_str())
    file = header(tmp_path, lambda writer: byte_level_keys(writer, spec, "gpt-2"))
    file.metadata |= {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(ModelError, match=problem):
        make_tokenizer(file)


def test_a_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGML" * 10)
    with pytest.raises(ModelError, match="does not begin with GGUF"):
        resolve_model(str(file))
    write_model(make_model(tmp_path), file, "llama", "gpt-2")
    (tmp_path / "taken").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    with pytest.raises(ModelError, match="set XDG_CACHE_HOME"):
        resolve_model(str(file))


def test_reading_a_file_needs_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    write_model(make_model(tmp_path), file, "llama", "gpt-2")
    code = (
        "import sys; from octavo.core.hub import resolve_model; "
        "resolve_model(sys.argv[1]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)
