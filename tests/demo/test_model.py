"""The shipped weights: what they are, that other programs read them alike, and that they have learned something."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from octavo.demo import DRAFT_DIR, MODEL_DIR, corpus, evaluate, net, train
from octavo.text.tokenizer import load_tokenizer

FOLDERS = pytest.mark.parametrize("folder", (MODEL_DIR, DRAFT_DIR), ids=("model", "draft"))
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "description": "Add <two> é", "parameters": {"type": "object", "properties": {}}},
    }
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello สวัสดี 😊 12+30"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"result": 1}'},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return evaluate.held_out(16)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@FOLDERS
def test_the_files_are_there_and_small(folder: Path) -> None:
    names = {"config.json", "generation_config.json", "model.safetensors", *train.TOKENIZER_FILES}
    assert {path.name for path in folder.iterdir()} == names
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 8.1e6
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 8e6
    assert sum(path.stat().st_size for path in DRAFT_DIR.iterdir()) <= 1.51e6
    assert (DRAFT_DIR / "model.safetensors").stat().st_size <= 1.5e6


@FOLDERS
def test_the_settings_agree_with_the_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    stops = [tokenizer.token_to_id(corpus.STOP), tokenizer.token_to_id(corpus.END)]
    config = json.loads((folder / "config.json").read_text())
    assert config["eos_token_id"] == stops == [evaluate.STOP_ID, evaluate.END_ID]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == stops
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert (folder / "chat_template.jinja").read_text() == corpus.CHAT_TEMPLATE
    assert (folder / "tokenizer.json").read_bytes() == (MODEL_DIR / "tokenizer.json").read_bytes()


def test_the_tokenizer_gives_back_every_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    texts = [*texts, "naïve Łukasz 日本語 สวัสดีครับ 🐙👩‍👩‍👧 \x00\t\r\n  x", ""]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("1234").tokens == ["1", "2", "3", "4"]
    assert [tokenizer.encode(mark).ids for mark in corpus.SPECIAL] == [[0], [1], [2]]
    assert all(len(tokenizer.encode(mark).ids) == 1 for mark in corpus.TOOL_MARKS)
    assert max(len(tokenizer.encode(text).ids) for text in texts) < net.MODEL.context


@pytest.mark.parametrize("tools", (None, TOOLS), ids=("no tools", "tools"))
def test_everybody_renders_the_chat_alike(tools: list[corpus.Message] | None) -> None:
    expected = corpus.render(CHAT, tools, generate=True)
    reference = AutoTokenizer.from_pretrained(MODEL_DIR)
    ours = load_tokenizer(MODEL_DIR)
    for messages in (CHAT, CHAT[1:2]):
        expected = corpus.render(messages, tools, generate=True)
        assert expected.endswith(f"{corpus.START}assistant\n")
        assert expected == ours.chat_template.render(messages, tools=tools)
        theirs = reference.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
        assert expected == theirs


@FOLDERS
def test_the_logits_are_those_of_transformers(folder: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    ids = torch.tensor([tokenizer.encode("".join(texts)).ids[:700]])
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        theirs, ours = reference(ids).logits, net.load(folder)(ids)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


def test_the_weights_have_learned_the_corpus(tokenizer: Tokenizer, texts: list[str]) -> None:
    model = evaluate.score(net.load(MODEL_DIR), tokenizer, texts)
    draft = evaluate.score(net.load(DRAFT_DIR), tokenizer, texts)
    assert model.perplexity < 1.6 and model.answer_perplexity < 1.13  # measured: 1.539 and 1.086
    assert model.perplexity < draft.perplexity < 1.72  # measured: 1.645


def test_the_model_answers_and_the_draft_agrees(tokenizer: Tokenizer, texts: list[str]) -> None:
    model, draft = net.load(MODEL_DIR), net.load(DRAFT_DIR)
    assert evaluate.ask(model, tokenizer, "What is 128 + 47?") == "128 + 47 = 175."
    assert evaluate.ask(model, tokenizer, "What is the capital of Japan?") == "The capital of Japan is Tokyo."
    same, per_step, _ = evaluate.agreement(model, draft, tokenizer, texts[:5])
    assert same > 0.8 and per_step > 2.5


def test_training_writes_a_checkpoint_and_goes_on_from_it(tmp_path: Path) -> None:
    brief = ["--out", str(tmp_path), "--rows", "1", "--length", "48", "--workers", "1", "--device", "cpu"]
    train.main([*brief, "--steps", "2", "--tokenizer-documents", "300"])
    before = net.load(tmp_path / "model").state_dict()
    train.main([*brief, "--steps", "2", "--resume", "--first-seed", "50"])
    train.main([*brief, "--steps", "1", "--draft"])
    after = net.load(tmp_path / "model").state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("proj.weight"))
    assert net.load(tmp_path / "draft").shape == net.DRAFT
    assert (tmp_path / "model-log.tsv").read_text().count("step\t") == 2
