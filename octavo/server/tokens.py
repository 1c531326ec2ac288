"""POST /tokenize and /detokenize, GET /tokenizer_info: the model's tokenizer over HTTP."""

from __future__ import annotations

from octavo.core.errors import RequestError
from octavo.server import fields
from octavo.server.http import Exchange, Response, json_response
from octavo.server.protocol import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest, TokenizerInfo
from octavo.server.service import Service, offload


async def tokenize(service: Service, exchange: Exchange, body: bytes) -> Response:
    request, tree, exchange.ignored = await fields.read(body, TokenizeRequest)
    service.model(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise RequestError("Send either prompt or messages.", "prompt")
    text, special = request.prompt, True
    if text is None:
        goes_on, begins = request.continue_final_message, request.add_generation_prompt
        special = False
        text = await service.render(
            len(body),
            tree["messages"],
            tools=tree.get("tools") or None,
            add_generation_prompt=not goes_on if begins is None else begins,
            continue_final_message=goes_on,
            variables=request.chat_template_kwargs,
        )
    if request.add_special_tokens is not None:
        special = request.add_special_tokens
    ids = await service.encode(text, special)
    answer = Tokenized(len(ids), service.llm.max_model_len, ids)
    if request.return_token_strs:
        name = service.llm.tokenizer.id_to_token
        answer.token_strs = await offload(len(ids), lambda: [name(i) or "" for i in ids])
    return await offload(len(ids), lambda: json_response(answer))


async def detokenize(service: Service, exchange: Exchange, body: bytes) -> Response:
    request, _, exchange.ignored = await fields.read(body, DetokenizeRequest)
    service.model(request.model)
    tokens, size = request.tokens, service.llm.info.vocab_size
    if tokens and max(tokens) >= size:
        raise RequestError(f"The model has {size} tokens: {max(tokens)} is none of them.", "tokens")
    text = await offload(len(tokens), lambda: service.llm.tokenizer.decode(tokens, skip_special_tokens=False))
    return json_response(Detokenized(text))


def tokenizer_info(service: Service) -> TokenizerInfo:
    tokenizer = service.llm.tokenizer
    bos, eos = (None if i is None else tokenizer.id_to_token(i) for i in (tokenizer.bos_id, tokenizer.eos_id))
    template = service.template or tokenizer.chat_template.templates.get("default")
    return TokenizerInfo("Tokenizer", tokenizer.vocab_size, service.llm.max_model_len, bos, eos, template)
