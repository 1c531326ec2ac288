"""What quantising costs a model: perplexity of the demo model on its held-out text, for each way to store numbers.

    python bench/quality.py                  the tables of docs/quantization.md
    python bench/quality.py --rows "KV" "w4a16" --documents 50 --model FOLDER

The text goes through the engine; what is counted is the log probability of each of its tokens but the first. Another
model is measured on the same text, which is not what it was made for: only ratios mean something. Rows of the cache
compute prompts in chunks of 16 tokens, so that nearly all that attention sees has been read from the cache. GPTQ and
static scales are calibrated with text that the demo model was trained on, never with what is measured.

The last column is the mean change of a token's log probability, whichever way: it tells more than perplexity, in which
tokens that became likelier make up for others. Two standard errors of the change of perplexity are beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from octavo import LLM, SamplingParams
from octavo.demo import MODEL_DIR, corpus
from octavo.demo.evaluate import held_out
from octavo.quant import ONLINE
from octavo.quantize.recipe import Recipe, find_scheme
from octavo.quantize.run import quantize_folder

GPTQ = {"method": "gptq", "samples": 256}
# What `octavo quantize` writes, by the flags that differ from its defaults.
RECIPES: dict[str, dict[str, Any]] = {
    "fp8": {"samples": 64},
    "fp8-dynamic": {},
    "int8": {},
    "w8a16": {},
    "w4a16": {},
    "w4a16, asymmetric": {"symmetric": False},
    "w4a16, GPTQ": GPTQ,
    "w4a16, GPTQ, asymmetric": {**GPTQ, "symmetric": False},
    "w4a16, GPTQ without act-order": {**GPTQ, "act_order": False},
}
CHUNK = 16


def log_probabilities(model: str, texts: list[str], dtype: str, **config: Any) -> np.ndarray:
    """Of every token of every text but the first."""
    llm = LLM(model, dtype=dtype, enable_prefix_caching=False, **config)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    values: list[float] = []
    for output in llm.generate(texts, params):
        assert output.prompt_logprobs is not None and output.prompt_token_ids is not None
        for token, told in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
            found = told[token]
            values.append(float(getattr(found, "logprob", found)))
    return np.array(values)


def rows(model: Path, place: Path, text: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, folder, configuration of the engine); a row's folder is made when it is asked for."""
    for kind in ONLINE:
        yield f"`--quantization {kind}`", str(model), {"quantization": kind}
    for name, flags in RECIPES.items():
        yield name, str(place / name), {"recipe": Recipe(find_scheme(name.partition(",")[0]), **flags), "text": text}
    for kind in ("auto", "fp8", "int8"):
        yield f"KV {kind}", str(model), {"kv_cache_dtype": kind, "max_num_batched_tokens": CHUNK, "max_num_seqs": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity by the way weights and KV cache are stored.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--rows", nargs="+", metavar="WORD", help="only rows whose name begins so")
    options = parser.parse_args()
    texts = held_out(options.documents)
    print("| stored as | perplexity | change | mean change of a token |\n|---|---|---|---|", flush=True)
    base = log_probabilities(str(options.model), texts, options.dtype)
    print(f"| {options.dtype} | {np.exp(-base.mean()):.4f} | | |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "calibration.jsonl")
        lines = [json.dumps({"text": document}) for document in islice(corpus.documents(4242, "train"), 1000)]
        text.write_text("\n".join(lines), encoding="utf-8")
        for name, model, config in rows(options.model, Path(folder), text):
            if options.rows is not None and not name.startswith(tuple(options.rows)):
                continue
            if "recipe" in config:
                quantize_folder(options.model, Path(model), config.pop("recipe"), calibration=config.pop("text"))
            found = log_probabilities(model, texts, options.dtype, **config)
            change = found - base
            percent, error = 100 * (math.exp(-change.mean()) - 1), 200 * change.std() / math.sqrt(len(change))
            print(
                f"| {name} | {np.exp(-found.mean()):.4f} | {percent:+.2f} ± {error:.2f} % | {abs(change).mean():.4f} |",
                flush=True,
            )
    print(f"\n{len(base)} tokens of {len(texts)} documents")


if __name__ == "__main__":
    main()
