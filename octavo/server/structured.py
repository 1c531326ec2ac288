"""How clients ask for a form of the answer, as one `StructuredOutputs`: OpenAI's `response_format`, vLLM's
`structured_outputs` and the `guided_…` fields before it, and SGLang's and llama.cpp's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from octavo.core.errors import RequestError
from octavo.core.structured import StructuredOutputs
from octavo.server.protocol import (
    FormatRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    PlainFormat,
    StructuralTagFormat,
)

_ALIASES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
    "grammar": "grammar",
    "structural_tag": "structural_tag",
}


def structured_outputs(request: FormatRequest, options: Mapping[str, Any]) -> StructuredOutputs | None:
    """What the answer must match, with the server's `options`; None for any text. RequestError if it is said twice."""
    asked = {name: {kind: value} for name, kind in _ALIASES.items() if (value := getattr(request, name)) is not None}
    if request.response_format is not None and not isinstance(request.response_format, PlainFormat):
        asked |= _response_format(request.response_format)
    direct = request.structured_outputs
    if direct is not None:
        asked["structured_outputs"] = {}
    if len(asked) > 1:
        first, second, *_ = asked
        raise RequestError(f"{first} and {second} both give the form of the answer.", second)
    whitespace = request.guided_whitespace_pattern
    if not asked:
        if whitespace is not None:
            raise RequestError("guided_whitespace_pattern goes with guided_json.", "guided_whitespace_pattern")
        return None
    if direct is not None:
        return msgspec.structs.replace(direct, param="", **{name: True for name, on in options.items() if on})
    ((param, values),) = asked.items()
    return StructuredOutputs(**values, **options, whitespace_pattern=whitespace, param=param)


def _response_format(form: JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat) -> dict[str, dict[str, Any]]:
    if isinstance(form, JsonObjectFormat):
        return {"response_format": {"json_object": True}}
    if isinstance(form, StructuralTagFormat):
        return {"response_format": {"structural_tag": form.tag}}
    if form.json_schema.schema is None:
        return {"response_format.json_schema": {"json_object": True}}
    return {"response_format.json_schema.schema": {"json": form.json_schema.schema}}
