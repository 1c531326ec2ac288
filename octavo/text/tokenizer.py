"""Tokenizers as model folders hold them, read with the `tokenizers` library; token ids equal those of transformers.

`load_tokenizer(folder)` reads tokenizer.json, tokenizer_config.json, special_tokens_map.json, the chat templates, and
the end-of-sequence ids of generation_config.json and config.json. Nothing in the folder is executed. A folder without
tokenizer.json is handed to transformers, if that is installed (see `octavo.text.slow`).

What tokenizer.json says is what happens, as in transformers 5: its post-processor decides about BOS and EOS, not
`add_bos_token` in tokenizer_config.json; its truncation and padding are switched off.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Protocol

from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from octavo.core.errors import ConfigError, RequestError
from octavo.text.chat import ChatTemplate
from octavo.text.pieces import Layout, PieceTable, read_layout

NO_LIMIT = 1 << 30  # more tokens than any text has
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Backend(Protocol):
    """What a `Tokenizer` needs of the library under it."""

    layout: Layout | None  # how its decoder works; None: it must be asked for each text

    def encode(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]: ...
    def encode_cut(self, texts: list[str], limit: int, keep_end: bool, special: bool) -> tuple[list[int], bytes]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...
    def join(self, tokens: list[str]) -> str: ...
    def id_to_token(self, token_id: int) -> str | None: ...
    def token_to_id(self, token: str) -> int | None: ...
    def added_tokens(self) -> dict[int, str]: ...
    def special_ids(self) -> frozenset[int]: ...
    def size(self) -> int: ...


class FastBackend:
    """A `tokenizers.Tokenizer`."""

    def __init__(self, fast: FastTokenizer) -> None:
        fast.no_truncation()
        fast.no_padding()
        self._fast = fast
        decoder = fast.decoder
        self.layout = read_layout(None if decoder is None else json.loads(decoder.__getstate__()))

    def encode(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        # The batch call without offsets takes half the time of encode() on long texts, and lets other threads run.
        return [e.ids for e in self._fast.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]

    def encode_cut(self, texts: list[str], limit: int, keep_end: bool, special: bool) -> tuple[list[int], bytes]:
        parts = self._fast.encode_batch_fast(texts, add_special_tokens=False)
        room = max(0, limit - self._fast.num_special_tokens_to_add(len(texts) > 1)) if special else limit
        for part, length in zip(parts, shares([len(part) for part in parts], room), strict=True):
            part.truncate(length, direction="left" if keep_end else "right")
        whole = self._fast.post_process(parts[0], parts[1] if len(parts) > 1 else None, special)
        return whole.ids, bytes(whole.type_ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self._fast.decode(ids, skip_special_tokens=skip_special_tokens)

    def join(self, tokens: list[str]) -> str:
        decoder = self._fast.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(tokens)

    def id_to_token(self, token_id: int) -> str | None:
        return self._fast.id_to_token(token_id)

    def token_to_id(self, token: str) -> int | None:
        return self._fast.token_to_id(token)

    def added_tokens(self) -> dict[int, str]:
        return {token_id: token.content for token_id, token in self._fast.get_added_tokens_decoder().items()}

    def special_ids(self) -> frozenset[int]:
        added = self._fast.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    def size(self) -> int:
        return self._fast.get_vocab_size(with_added_tokens=True)


class Tokenizer:
    """Text to token ids and back.

    `bos_id` and `eos_id` may be None. `eos_ids` are all ids that end an answer: the tokenizer's and those that
    the model's generation config lists. `all_special_ids` are the ids that `skip_special_tokens` leaves out.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        special_tokens: dict[str, str],
        chat_template: ChatTemplate,
        model_bos_id: int | None = None,
        model_eos_ids: Sequence[int] = (),
        token_types: bool = True,
    ) -> None:
        self._backend = backend
        self._token_types = token_types  # the model is told which of two texts a token is of
        self.chat_template = chat_template
        self.vocab_size = backend.size()
        self.added_tokens = backend.added_tokens()
        self.all_special_ids = backend.special_ids()
        bos, eos = special_tokens.get("bos_token"), special_tokens.get("eos_token")
        self.bos_id = model_bos_id if bos is None else backend.token_to_id(bos)
        eos_id = None if eos is None else backend.token_to_id(eos)
        self.eos_ids = tuple(sorted({*model_eos_ids, *([] if eos_id is None else [eos_id])}))
        self.eos_id = next(iter(model_eos_ids), None) if eos_id is None else eos_id
        self._pieces = self._make_pieces(frozenset())
        self._unspecial_pieces = self._make_pieces(self.all_special_ids)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        try:
            return self._backend.encode(texts, add_special_tokens)
        except Exception as error:  # the library raises no narrower class
            raise _unreadable(texts) from error

    def encode_cut(
        self, texts: Sequence[str], limit: int = NO_LIMIT, keep_end: bool = False, add_special_tokens: bool = True
    ) -> tuple[list[int], bytes]:
        """One text, or two as the model reads pairs, in at most `limit` tokens, special ones included.

        The longer text is cut first, at its end or (`keep_end`) at its beginning. Returns the ids, and for each one a
        byte: which of the two texts it is of, as the tokenizer tells the model; none where all are of the first.
        """
        try:
            ids, types = self._backend.encode_cut(list(texts), limit, keep_end, add_special_tokens)
            return ids, types if self._token_types and any(types) else b""
        except Exception as error:
            raise _unreadable(texts) from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence. For what an answer adds to a prompt, use a `Detokenizer`."""
        return self._backend.decode(ids, skip_special_tokens)

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it; None for an id that the tokenizer does not have."""
        return self._backend.id_to_token(token_id)

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to a text, which may be part of a character; none for an unknown id."""
        if self._pieces is None:
            return b"" if self.id_to_token(token_id) is None else self.decode([token_id], False).encode()
        piece = self._pieces[token_id]
        return piece.encode() if isinstance(piece, str) else piece or b""

    def pieces(self, skip_special_tokens: bool) -> PieceTable | None:
        """What each token adds to a text; None where the decoder does not work token by token."""
        return self._unspecial_pieces if skip_special_tokens else self._pieces

    def _make_pieces(self, hidden: frozenset[int]) -> PieceTable | None:
        backend = self._backend
        anchor = next((letter for letter in ascii_lowercase if backend.join([letter]) == letter), None)
        if backend.layout is None or anchor is None:
            return None
        return PieceTable(backend.layout, backend.id_to_token, backend.join, anchor, hidden)


def _unreadable(texts: Sequence[str]) -> RequestError:
    if any("\ud800" <= char <= "\udfff" for text in texts for char in text):
        return RequestError("the text holds half a character (a lone surrogate)")
    return RequestError("the model's tokenizer cannot encode this text")


def shares(lengths: Sequence[int], room: int) -> list[int]:
    """What is kept of one or two texts of these lengths so that they fit: the longer one is cut first."""
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    first = min(lengths[0], max(room - room // 2, room - lengths[1]))
    return [first, room - first]


def load_tokenizer(folder: Path) -> Tokenizer:
    config = read_json(folder / "tokenizer_config.json")
    if not (folder / "tokenizer.json").is_file():
        from octavo.text.slow import load_with_transformers

        backend, special_tokens = load_with_transformers(folder)
    else:
        try:
            fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises no narrower class
            raise ConfigError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
        if "added_tokens_decoder" not in config:  # as written before transformers 4.34
            config |= read_json(folder / "special_tokens_map.json")
            config["added_tokens_decoder"] = _old_added_tokens(folder, fast, config)
        if _is_llama_tokenizer(folder, config):
            _use_llama_pipeline(fast, config)
        special_tokens = _add_tokens(fast, config)
        fast.encode_special_tokens = bool(config.get("split_special_tokens", False))
        backend = FastBackend(fast)
    bos_id, eos_ids = _model_ids(folder)
    inputs = config.get("model_input_names")
    return Tokenizer(
        backend,
        special_tokens=special_tokens,
        chat_template=ChatTemplate(_read_templates(folder, config), special_tokens),
        model_bos_id=bos_id,
        model_eos_ids=eos_ids,
        token_types=not isinstance(inputs, list) or "token_type_ids" in inputs,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value


def _is_llama_tokenizer(folder: Path, config: dict[str, Any]) -> bool:
    """Llama 3 names the class too, but its vocabulary is byte-level: its tokenizer.json is used as it is."""
    if config.get("tokenizer_class") not in ("LlamaTokenizer", "LlamaTokenizerFast"):
        return False
    if read_json(folder / "config.json").get("model_type", "llama") != "llama":
        return False
    return b'"ByteLevel"' not in (folder / "tokenizer.json").read_bytes()


def _use_llama_pipeline(fast: FastTokenizer, config: dict[str, Any]) -> None:
    """transformers builds a LlamaTokenizer from the vocabulary alone, so that a space is put before the first word of
    a text only and not, as most such tokenizer.json files say, after each special token."""
    prefix = config.get("add_prefix_space")
    scheme = "never" if prefix is False else "always" if config.get("legacy", False) else "first"
    fast.normalizer = None
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix is not False:
        steps.append(decoders.Strip(content=" ", left=1))
    fast.decoder = decoders.Sequence(steps)


def _add_tokens(fast: FastTokenizer, config: dict[str, Any]) -> dict[str, str]:
    """Add the tokens that only the config knows, in transformers' order; returns the named special tokens."""
    added: dict[str, AddedToken] = {}
    for _, value in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        token = _added_token(value)
        added[token.content] = token
    named = {name: _content(config[name]) for name in _NAMED_TOKENS if config.get(name)}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, dict):  # {"image_token": "<image>"}
        named |= {name: _content(value) for name, value in extra.items()}
        extra = []
    # Other names of special tokens, as multimodal models have.
    named |= {k: v for k, v in config.items() if k.endswith("_token") and isinstance(v, str) and k not in named}
    known = {token.content for token in fast.get_added_tokens_decoder().values()}
    for value in (*(config.get(name, content) for name, content in named.items()), *extra):
        content = _content(value)
        if content in added:
            if content in named.values():
                added[content].special = True
        elif content not in known:
            added[content] = _added_token(value, special=True)
    fast.add_tokens(list(added.values()))
    return named


def _old_added_tokens(folder: Path, fast: FastTokenizer, config: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """added_tokens.json as `added_tokens_decoder`, which took its place."""
    listed = [config.get(name) for name in _NAMED_TOKENS]
    listed += config.get("additional_special_tokens") or []
    special = {_content(value) for value in listed if value}
    known = {token.content for token in fast.get_added_tokens_decoder().values()}
    return {
        int(token_id): {"content": content, "special": content in special, "normalized": content not in special}
        for content, token_id in read_json(folder / "added_tokens.json").items()
        if content not in known
    }


def _content(value: Any) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise ConfigError(f"tokenizer_config.json: {value!r} is not a special token")
    return content


def _added_token(value: Any, special: bool | None = None) -> AddedToken:
    content = _content(value)
    options = value if isinstance(value, dict) else {}
    flags = {name: bool(options[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in options}
    return AddedToken(content, special=bool(options.get("special", False)) if special is None else special, **flags)


def _model_ids(folder: Path) -> tuple[int | None, list[int]]:
    """(BOS id, EOS ids) as the model's configs give them. generation_config.json comes first: config.json often names
    one end token where there are several."""
    config = read_json(folder / "config.json")
    text_config = config.get("text_config")
    places = [
        read_json(folder / "generation_config.json"),
        config,
        text_config if isinstance(text_config, dict) else {},
    ]
    found: dict[str, list[int]] = {"bos_token_id": [], "eos_token_id": []}
    for name, ids in found.items():
        for place in places:
            value = place.get(name)
            if not ids and value is not None:
                ids += [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int) and i >= 0]
    return next(iter(found["bos_token_id"]), None), found["eos_token_id"]


def _read_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name; the ordinary one is "default". Files come before what tokenizer_config.json holds."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    try:
        templates = {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
    except (OSError, ValueError) as error:
        raise ConfigError(f"a chat template in {folder} cannot be read: {error}") from error
    # Multimodal models keep theirs beside the processor.
    value = templates or config.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    try:
        return {item["name"]: item["template"] for item in value} if isinstance(value, list) else dict(value or {})
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"the chat templates in {folder} cannot be read: {error!r}") from error
