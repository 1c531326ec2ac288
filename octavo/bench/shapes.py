"""Model folders with the shape of a known model and no weights, for `--load-format dummy`.

    python -m octavo.bench.shapes llama-3-8b FOLDER
    octavo serve FOLDER --load-format dummy

The folder's tokenizer knows no text: prompts are token ids.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, models

# hidden, intermediate, layers, heads, key/value heads, vocabulary, whether input and output embeddings are one
SHAPES = {
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128256, False),
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 128256, True),
}


def write_shape(name: str, folder: Path, context: int = 8192) -> Path:
    """Makes the folder, if need be, and writes config.json and tokenizer.json into it."""
    hidden, mlp, layers, heads, kv_heads, vocab, tied = SHAPES[name]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "dtype": "bfloat16",
        "initializer_range": 0.02,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m octavo.bench.shapes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--context", type=int, default=8192, metavar="N", help="tokens (default: 8192)")
    args = parser.parse_args()
    print(write_shape(args.name, args.folder, args.context))


if __name__ == "__main__":
    main()
