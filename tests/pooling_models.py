"""Small models that read, for tests: random weights, saved by transformers under the name of each architecture.

    folder = make_pooling_model(tmp_path, "BertModel")

The tokenizer is that of tests/builders.py with the template of an encoder: `<|endoftext|> text <|im_end|>`, or of a
pair `<|endoftext|> first <|im_end|> second <|im_end|>`, whose second text is of type 1.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.builders import VOCAB_SIZE, make_config, save_tokenizer

ENCODER: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
}
# By what a name begins with: transformers' config class and what it is given, or the family of a decoder.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("BertConfig", {"max_position_embeddings": 128, "pad_token_id": 0}),
    "DistilBert": (
        "DistilBertConfig",
        {"max_position_embeddings": 128, "dim": 64, "hidden_dim": 96, "n_layers": 3, "n_heads": 4},
    ),
    "Roberta": ("RobertaConfig", {"max_position_embeddings": 130, "type_vocab_size": 1, "pad_token_id": 1}),
    "XLMRoberta": ("XLMRobertaConfig", {"max_position_embeddings": 130, "type_vocab_size": 1, "pad_token_id": 1}),
    "ModernBert": (
        "ModernBertConfig",
        {
            "max_position_embeddings": 128,
            "local_attention": 16,
            "pad_token_id": 0,
            "cls_token_id": 1,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Mistral": ("mistral", {"sliding_window": 16}),
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {"head_dim": 32}),
    "Gemma": ("gemma", {"num_key_value_heads": 1, "head_dim": 32}),
    "Gemma2": ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 1.0}),
}


def make_pooling_model(tmp_path: Path, architecture: str, *, labels: int = 3, seed: int = 0, **overrides: Any) -> Path:
    transformers = importlib.import_module("transformers")
    name = architecture.removesuffix("ForSequenceClassification").removesuffix("Model")
    if name in CONFIGS:
        kind, values = CONFIGS[name]
        config = getattr(transformers, kind)(**{**ENCODER, **values, "num_labels": labels, **overrides})
    else:
        family, values = DECODERS[name]
        config = make_config(family, **{**values, "num_labels": labels, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, architecture)(config)
        for path, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms of one and biases of zero would hide one that is left out
                center = float("norm" in path.lower() and path.endswith("weight") and not name.startswith("Gemma"))
                torch.nn.init.normal_(parameter, mean=center, std=0.2)
    folder = Path(tempfile.mkdtemp(prefix=f"{architecture}-", dir=tmp_path))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    if name in CONFIGS:
        use_pair_template(folder)
    return folder


def use_pair_template(folder: Path) -> None:
    from tokenizers import Tokenizer, processors

    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        pair="<|endoftext|> $A <|im_end|> $B:1 <|im_end|>:1",
        special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)],
    )
    tokenizer.save(path)


def add_modules(folder: Path, mode: str, *, dense: int | None = None, normalize: bool = True, **config: Any) -> None:
    """Makes a folder one of sentence-transformers. `dense`: values of an embedding after a layer of its own."""
    size = json.loads((folder / "config.json").read_text())["hidden_size"]
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": size, f"pooling_mode_{mode}": True})
    if dense is not None:
        modules.append(("2_Dense", "Dense"))
        values = {"in_features": size, "out_features": dense, "bias": True}
        write(folder / "2_Dense" / "config.json", {**values, "activation_function": "torch.nn.modules.activation.Tanh"})
        generator = torch.Generator().manual_seed(1)
        weights = {"linear.weight": (dense, size), "linear.bias": (dense,)}
        drawn = {name: torch.randn(shape, generator=generator) for name, shape in weights.items()}
        save_file(drawn, folder / "2_Dense" / "model.safetensors")
    if normalize:
        modules.append(("3_Normalize", "Normalize"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    write(folder / "modules.json", listed)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 100})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def load_pooling_reference(folder: Path) -> Any:
    """transformers' model of a folder."""
    transformers = importlib.import_module("transformers")
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, attn_implementation="eager", dtype="auto").eval()
