from __future__ import annotations

import subprocess
import sys

import pytest

from octavo.core.errors import ModelError
from octavo.models.decoder import Decoder
from octavo.models.registry import ARCHITECTURES, load_class
from tests.models import docs


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("Qwen3ForCausalLm", "Qwen3ForCausalLM"),
        ("GemmaForCausalLM2", "GemmaForCausalLM"),
        ("Phi4ForCausalLM", "Phi3ForCausalLM"),
        ("GPT2Model", "GPT2LMHeadModel"),
        ("Glm4MoEForCausalLM", "Glm4MoeForCausalLM"),
    ],
)
def test_unknown_architectures_get_the_nearest_names(asked: str, meant: str) -> None:
    with pytest.raises(ModelError, match=rf"architecture '{asked}' is not supported; did you mean .*\b{meant}\b"):
        load_class(asked)


def test_nothing_is_near() -> None:
    with pytest.raises(ModelError, match=r"known: .*LlamaForCausalLM"):
        load_class("zzz")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_registered_class_exists(architecture: str) -> None:
    assert issubclass(load_class(architecture), Decoder)


def test_families_are_imported_when_asked_for() -> None:
    code = (
        "import sys; from octavo.models import registry; registry.load_class('GlmForCausalLM'); "
        "print(*sorted(m for m in sys.modules if m.startswith('octavo.models.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "octavo.models.glm" in done.stdout.split()
    assert not {"octavo.models.gemma", "octavo.models.llama"} & set(done.stdout.split())


def test_the_page_of_models_is_up_to_date() -> None:
    text = docs.PAGE.read_text(encoding="utf-8")
    assert text == docs.page(text), "run python -m tests.models.docs"


def test_every_architecture_is_tested_in_the_engine_or_as_another() -> None:
    for name in ARCHITECTURES:
        assert name in docs.RENAMED or "engine" in docs.tested(name)
