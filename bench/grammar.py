"""Grammar libraries beside each other, and what following a grammar costs Octavo.

    python bench/grammar.py compare [--tekken FILE] [--json FILE]
    python bench/grammar.py follow [--tekken FILE] [--json FILE]
    python bench/grammar.py neighbours [--json FILE]

`compare` gives both libraries the schemas of grammar_cases.py. A schema is *right* if all values that it accepts can
be written and none that it refuses, *refused* if the library says that it cannot do it, and *wrong* otherwise: then
answers would not be what was asked for, and nobody is told. Compile times are those of a new grammar, mask times of
all the states that the accepted values lead through.

`follow` measures the engine's side (`octavo.grammar.rows`): from handing over the tokens of a step to the masks being
there, by the number of rows; what a grammar made to be slow costs; and how a mask is applied to logits.

`neighbours` measures what rows without a grammar feel of eight rows with one, on the demo model: the time from token to
token, against the same rows beside eight more like them.

`--tekken` is mistral_common/data/tekken_240911.json of that package's wheel; without it the demo model's vocabulary is
used.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from grammar_cases import CASES

from octavo.core.params import SamplingParams
from octavo.core.request import EngineRequest, pack_ids
from octavo.core.structured import StructuredOutputs
from octavo.demo import MODEL_DIR
from octavo.grammar.checker import Checker
from octavo.grammar.messages import State
from octavo.grammar.rows import Grammars
from octavo.grammar.schema import GrammarError
from octavo.grammar.source import translate
from octavo.grammar.vocabulary import Vocabulary
from octavo.text.tokenizer import Tokenizer, load_tokenizer

Encode = Callable[[str], list[int]]


def tekken(path: Path, folder: Path) -> Path:
    """The vocabulary as a tokenizer.json."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    from octavo.text.pieces import _byte_alphabet

    data = json.loads(path.read_text())
    config, letters = data["config"], {byte: char for char, byte in _byte_alphabet().items()}
    special = config["default_num_special_tokens"]
    count = config["default_vocab_size"] - special
    pieces = [base64.b64decode(entry["token_bytes"]) for entry in data["vocab"][:count]]
    rank = {piece: i for i, piece in enumerate(pieces)}

    def spell(piece: bytes) -> str:
        return "".join(letters[byte] for byte in piece)

    merges = []
    for piece in pieces:
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in rank and piece[i:] in rank]
        merges += [(spell(a), spell(b)) for a, b in sorted(splits, key=lambda ab: (rank[ab[0]], rank[ab[1]]))]
    names = [f"<SPECIAL_{i}>" for i in range(special)]
    vocab = {name: i for i, name in enumerate(names)} | {spell(piece): special + i for i, piece in enumerate(pieces)}
    fast = Fast(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(config["pattern"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(name, special=True) for name in names])
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<SPECIAL_2>", "bos_token": "<SPECIAL_1>"}))
    return folder


class LLGuidance:
    """Octavo's own translation and limits."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.mask = np.zeros(vocabulary.words, np.int32)

    def compile(self, schema: Any) -> Any:
        try:
            return translate(StructuredOutputs(json=json.dumps(schema)), self.vocabulary)
        except GrammarError as error:
            raise ValueError(error.message) from None

    def compile_alone(self, schema: Any) -> None:
        self.vocabulary.matcher(self.compile(schema))

    def start(self, compiled: Any) -> Any:
        return self.vocabulary.matcher(compiled)

    def fill(self, matcher: Any) -> None:
        matcher.unsafe_compute_mask_ptr(self.mask.ctypes.data, self.mask.nbytes)

    def accept(self, matcher: Any, token: int) -> bool:
        return bool(matcher.validate_tokens([token]) == 1 and matcher.consume_token(token))

    def complete(self, matcher: Any) -> bool:
        return bool(matcher.is_accepting())


class XGrammar:
    def __init__(self, vocabulary: Vocabulary) -> None:
        import torch
        import xgrammar

        self.library, count = xgrammar, len(vocabulary.tokens)
        info = xgrammar.TokenizerInfo(vocabulary.tokens, vocab_size=count, stop_token_ids=vocabulary.eos_ids)
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.mask = torch.zeros(1, -(-count // 32), dtype=torch.int32)

    def compile(self, schema: Any) -> Any:
        return self.compiler.compile_json_schema(json.dumps(schema), strict_mode=False)

    compile_alone = compile

    def start(self, compiled: Any) -> Any:
        return self.library.GrammarMatcher(compiled, terminate_without_stop_token=False)

    def fill(self, matcher: Any) -> None:
        matcher.fill_next_token_bitmask(self.mask)

    def accept(self, matcher: Any, token: int) -> bool:
        return bool(matcher.accept_token(token))

    def complete(self, matcher: Any) -> bool:
        return bool(matcher.is_completed())


def writes(library: Any, compiled: Any, tokens: list[int], masks: list[float] | None = None) -> bool:
    matcher = library.start(compiled)
    for token in tokens:
        if masks is not None:
            start = time.perf_counter()
            library.fill(matcher)
            masks.append((time.perf_counter() - start) * 1e6)
        if not library.accept(matcher, token):
            return False
    return bool(library.complete(matcher))


def compare(vocabulary: Vocabulary, encode: Encode) -> list[dict[str, Any]]:
    results = []
    for library in (LLGuidance(vocabulary), XGrammar(vocabulary)):
        verdicts: dict[str, list[str]] = {"right": [], "refused": [], "wrong": []}
        compiles, masks = [], []
        for name, schema, good, bad in CASES:
            try:
                start = time.perf_counter()
                compiled = library.compile(schema)
                compiles.append((time.perf_counter() - start) * 1e3)
                accepted = all(writes(library, compiled, _tokens(value, encode), masks) for value in good)
                refused = not any(writes(library, compiled, _tokens(value, encode)) for value in bad)
            except Exception as error:  # each library has its own
                verdicts["refused"].append(f"{name}: {str(error).strip().splitlines()[-1][:80]}")
                continue
            if accepted and refused:
                verdicts["right"].append(name)
            else:
                what = [] if accepted else ["cannot write what it accepts"]
                verdicts["wrong"].append(f"{name}: {', '.join(what + ([] if refused else ['writes what it refuses']))}")
        results.append(
            {
                "library": type(library).__name__,
                "right": len(verdicts["right"]),
                "refused": verdicts["refused"],
                "wrong": verdicts["wrong"],
                "compile_ms": _spread(compiles),
                "mask_us": _spread(masks),
            }
        )
    return results


def _tokens(value: Any, encode: Encode) -> list[int]:
    return encode(json.dumps(value, separators=(",", ":"), ensure_ascii=False))


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "mean": round(statistics.fmean(ordered), 3),
        "p99": round(ordered[int(len(ordered) * 0.99)], 3),
        "worst": round(ordered[-1], 3),
    }


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 8},
        "address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}},
    },
    "required": ["name", "age", "tags", "address"],
}
# What a hostile user may try: each passes the checker or is refused by it; the times are those of the masks after it.
HOSTILE = {
    "(a|b)*a[ab]{14}": {"regex": "(a|b)*a[ab]{14}"},
    "[\\s\\S]*(a|e)[\\s\\S]{40}": {"regex": "[\\s\\S]*(a|e)[\\s\\S]{40}"},
    "(.*a){30}": {"regex": "(.*a){30}"},
    "ambiguous": {"grammar": 'start: s\ns: s s | "a" | "b" | ""'},
    "many optional": {"json": {"type": "object", "properties": {f"key{i}": {"type": "integer"} for i in range(500)}}},
    "5000 enum": {"json": {"enum": [f"value number {i} of many" for i in range(5000)]}},
}


def follow(folder: Path, vocab_size: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    checker = Checker(folder, vocab_size)
    results = []
    text = json.dumps(
        {"name": "Ada Lovelace", "age": 36, "tags": ["red", "blue"] * 3, "address": {"street": "x", "city": "y"}}
    )
    ids = tokenizer.encode(text, add_special_tokens=False)
    source = checker.check(StructuredOutputs(json=PERSON))
    for rows in (1, 8, 32, 128, 256):
        results.append({"rows": rows, **_turns(Grammars(folder, vocab_size, rows), source, [ids] * rows)})
        print(results[-1])
    for name, asked in HOSTILE.items():
        start = time.perf_counter()
        try:
            source = checker.check(StructuredOutputs(**asked))
        except ValueError as error:
            results.append(
                {"hostile": name, "check_s": round(time.perf_counter() - start, 3), "refused": str(error)[:120]}
            )
        else:
            checked = round(time.perf_counter() - start, 3)
            found = _turns(Grammars(folder, vocab_size, 1), source, [None])
            results.append({"hostile": name, "check_s": checked, **found})
        print(results[-1])
    return results


def _turns(grammars: Grammars, source: str, answers: list[list[int] | None]) -> dict[str, Any]:
    """Microseconds from the tokens of a step to its masks. An answer that is None is drawn from the masks."""
    rng = np.random.default_rng(0)
    params = SamplingParams()
    request = EngineRequest(1, pack_ids([1]), params, 100, [], [], grammar=source)
    waiting = set(range(len(answers)))
    opened = time.perf_counter()
    for row in waiting:
        grammars.open(row, 0, request, np.empty(0, np.int32))
    _await(grammars, waiting)
    opening = time.perf_counter() - opened
    times, ends = [], False
    for turn in range(min(len(a) for a in answers if a) if answers[0] else 200):
        tokens = [a[turn] if a else _draw(grammars.masks[row], rng) for row, a in enumerate(answers)]
        rows = np.arange(len(answers), dtype=np.int32)
        start = time.perf_counter()
        grammars.advance(rows, np.array(tokens, np.int32))
        ends = _await(grammars, set(rows.tolist()))
        times.append((time.perf_counter() - start) * 1e6)
        if ends:
            break
    grammars.shutdown()
    per_row = statistics.median(times) / len(answers)
    return {"open_ms": round(opening * 1e3, 1), "turn_us": _spread(times), "per_row_us": round(per_row, 2)}


def _await(grammars: Grammars, waiting: set[int]) -> bool:
    """True if some row has ended."""
    ended = False
    while waiting:
        for row, state, _ in grammars.poll(0.001):
            waiting.discard(row)
            ended |= state is not State.READY
        if waiting:
            grammars.wait(0.01)
    return ended


def _draw(mask: Any, rng: np.random.Generator) -> int:
    return int(rng.choice(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))))


def apply(vocab_size: int) -> list[dict[str, Any]]:
    """Masks put on logits and taken off again, on the CPU and, where there is one, on a GPU."""
    import torch

    from octavo.core.plan import RowJoin
    from octavo.sampling.grammar_mask import GrammarMask

    results = []
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for rows in (1, 16, 256):
            mask = GrammarMask(rows, vocab_size, torch.device(device))
            for row in range(rows):
                mask.join(RowJoin(row, SamplingParams(), 0, np.empty(0, np.int32), 0, [], True))
            words = np.random.default_rng(0).integers(-(2**31), 2**31, (rows, -(-vocab_size // 32))).astype(np.int32)
            logits = torch.randn(rows, vocab_size, device=device, dtype=torch.bfloat16 if device == "cuda" else None)
            rows_host = np.arange(rows, dtype=np.int32)
            rows_S = torch.arange(rows, device=device)
            times = []
            for _ in range(20):
                start = time.perf_counter()
                mask.write(rows_host, words)
                mask.hide(logits, rows_S, rows_host).show(logits)
                if device == "cuda":
                    torch.cuda.synchronize()
                times.append((time.perf_counter() - start) * 1e6)
            results.append({"apply": device, "rows": rows, "us": _spread(times)})
            print(results[-1])
    return results


def neighbours() -> list[dict[str, Any]]:
    from octavo import LLM
    from octavo.core.params import RequestOutputKind

    llm = LLM()
    plain = {"max_tokens": 200, "ignore_eos": True, "seed": 1, "output_kind": RequestOutputKind.DELTA}
    others: dict[str, dict[str, Any] | None] = {"like them": {}, "JSON schema": {"json": PERSON}, **HOSTILE}
    results = []
    for name, asked in others.items():
        times: list[float] = []
        for _ in range(2):  # the first is not counted: it compiles
            form = StructuredOutputs(**asked) if asked else None
            grammar = "" if form is None else llm._checker.check(form)
            requests = [
                llm._intake.build([5, 6, 7], SamplingParams(**plain, structured_outputs=f), grammar=g)
                for f, g in [(None, "")] * 8 + [(form, grammar)] * 8
            ]
            watched = requests[0].uid
            for request in requests:
                llm._core.add(request)
            times, last = [], time.perf_counter()
            while llm._core.has_work:
                outputs = llm._core.step()
                if outputs is not None and watched in np.frombuffer(outputs.uids, np.int64):
                    now = time.perf_counter()
                    times.append((now - last) * 1e3)
                    last = now
        results.append({"beside": name, "ms": _spread(times[5:])})
        print(results[-1])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("compare", "follow", "neighbours"))
    parser.add_argument("--tekken", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = tekken(args.tekken, Path(temporary)) if args.tekken else MODEL_DIR
        tokenizer = load_tokenizer(folder)
        size = tokenizer.vocab_size
        if args.what == "compare":
            encode: Encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
            found = compare(Vocabulary(tokenizer, size), encode)
            for result in found:
                print(json.dumps(result, indent=1))
        elif args.what == "neighbours":
            found = neighbours()
        else:
            found = follow(folder, size, tokenizer) + apply(size)
    if args.json:
        report = {"date": str(date.today()), "what": args.what, "vocabulary": size, "results": found}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
