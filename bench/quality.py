"""What quantising costs a model: perplexity of the demo model on its held-out text, for each way to store weights.

    python bench/quality.py                  the table of docs/quantization.md
    python bench/quality.py --documents 50 --model FOLDER

The text goes through the engine; what is counted is the log probability of each of its tokens but the first. Another
model is measured on the same text, which is not what it was made for: only ratios mean something.
"""

from __future__ import annotations

import argparse
import math

from octavo import LLM, SamplingParams
from octavo.demo import MODEL_DIR
from octavo.demo.evaluate import held_out
from octavo.quant import ONLINE


def perplexity(model: str, texts: list[str], dtype: str, quantization: str | None) -> tuple[float, int]:
    """Of a token, and how many there were."""
    llm = LLM(model, dtype=dtype, quantization=quantization, enable_prefix_caching=False)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    total, count = 0.0, 0
    for output in llm.generate(texts, params):
        assert output.prompt_logprobs is not None and output.prompt_token_ids is not None
        for token, told in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
            found = told[token]
            total -= getattr(found, "logprob", found)
            count += 1
    return math.exp(total / count), count


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity by the way weights are stored.")
    parser.add_argument("--model", default=str(MODEL_DIR))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--documents", type=int, default=200)
    options = parser.parse_args()
    texts = held_out(options.documents)
    base: float | None = None
    print("| weights | perplexity | change |\n|---|---|---|")
    for quantization in (None, *ONLINE):
        found, count = perplexity(options.model, texts, options.dtype, quantization)
        base = base or found
        print(f"| {quantization or options.dtype} | {found:.4f} | {100 * (found / base - 1):+.2f} % |", flush=True)
    print(f"\n{count} tokens of {len(texts)} documents")


if __name__ == "__main__":
    main()
