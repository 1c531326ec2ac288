"""Arguments of vLLM's `LLM` that are not ours, and those that are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, BeamSearchParams, ConfigError, RequestError, SamplingParams
from tests.engine.conftest import Reference

HELLO: Any = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
ONE = SamplingParams(max_tokens=1)


def test_a_chat_template_of_ones_own(llama: Reference, tmp_path: Path) -> None:
    def prompt(template: str, **options: Any) -> str | None:
        llm = LLM(str(llama.folder), num_kv_blocks=64, tensor_parallel_size=1, chat_template=template)
        return llm.chat(HELLO, ONE, use_tqdm=False, **options)[0].prompt

    source = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    (tmp_path / "chat.jinja").write_text(source)
    assert prompt(source) == prompt(str(tmp_path / "chat.jinja")) == "<a\nb>"
    assert prompt(source, chat_template="own") == "own"
    listed = prompt("{{ messages[0].content | length }}", chat_template_content_format="openai")
    assert listed == "2"
    with pytest.raises(ConfigError, match="chat_template"):
        prompt(str(tmp_path / "none.jinja"))


def test_what_methods_do_not_take(llama: Reference) -> None:
    llm = LLM(str(llama.folder), num_kv_blocks=64)
    (output,) = llm.generate("a", ONE, lora_request=None, tokenization_kwargs={})
    assert output.finished and output.lora_request is output.outputs[0].lora_request is None
    assert output.encoder_prompt is output.encoder_prompt_token_ids is None
    assert llm.beam_search("a", BeamSearchParams(beam_width=1, max_tokens=1), concurrency_limit=None)
    for call in (
        lambda **other: llm.generate("a", ONE, **other),
        lambda **other: llm.chat(HELLO, ONE, chat_template="x", **other),
        lambda **other: llm.beam_search("a", BeamSearchParams(beam_width=1, max_tokens=1), **other),
    ):
        with pytest.raises(RequestError, match="lora_request is not supported"):
            call(lora_request=object())
        with pytest.raises(TypeError, match="lora_requset"):
            call(lora_requset=None)
