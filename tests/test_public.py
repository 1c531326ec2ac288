"""The public surface: complete, sorted, quick to import, and free of torch until it is needed."""

from __future__ import annotations

import subprocess
import sys

import octavo

PUBLIC = [
    "LLM",
    "AsyncLLM",
    "BeamSearchParams",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "ConfigError",
    "EmbeddingRequestOutput",
    "EngineConfig",
    "EngineError",
    "Logprob",
    "OctavoError",
    "PoolingParams",
    "PoolingRequestOutput",
    "RequestError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringRequestOutput",
    "StructuredOutputs",
    "StructuredOutputsParams",
]
ALIASES = {"StructuredOutputsParams": "StructuredOutputs"}  # vLLM's name: ours


def test_names():
    assert octavo.__all__ == PUBLIC
    assert sorted(PUBLIC[1:]) == PUBLIC[1:]
    for name in PUBLIC:
        assert getattr(octavo, name).__name__ == ALIASES.get(name, name)
    assert set(octavo._HOMES) == set(PUBLIC)


def test_unknown_name():
    try:
        octavo.Nonsense  # noqa: B018
    except AttributeError as error:
        assert "Nonsense" in str(error)
    else:
        raise AssertionError("an unknown name was found")


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_is_light():
    # What a slow start is made of; the time itself is measured by bench/, where other programs do not disturb it.
    heavy = {"torch", "numpy", "transformers", "fastapi", "tokenizers", "msgspec"}
    assert not heavy & loaded_by("import octavo")


def test_front_end_runs_without_torch():
    assert not {"torch", "transformers"} & loaded_by(
        "from octavo import AsyncLLM, SamplingParams; import octavo.cli.main"
    )
