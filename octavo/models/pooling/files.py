"""What a folder says of pooling: sentence-transformers' files, and the labels of config.json. Does not import torch.

`modules.json` lists what comes after the transformer; a module that is not known is refused by name, and nothing that
it names is ever imported. Without that file an encoder's text is its first token, a decoder's its last.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from octavo.core.errors import ConfigError, ModelError
from octavo.core.pooling import PoolingInfo
from octavo.models.config import ConfigReader, read_json

Kind = Literal["embed", "classify", "reward"]
Method = Literal["cls", "last", "mean"]

# sentence-transformers' names of what a pooling module does.
MODES: dict[str, Method] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
}
SHORT_MODES: dict[str, Method] = {"cls": "cls", "lasttoken": "last", "mean": "mean"}
# The last parts of torch's names for activations, which configs give as Python paths.
ACTIVATIONS = {"Identity": "none", "Tanh": "tanh", "Sigmoid": "sigmoid", "ReLU": "relu", "GELU": "gelu"}


@dataclass(frozen=True, slots=True)
class DenseSpec:
    folder: Path
    in_size: int
    out_size: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True)
class PoolingSpec:
    kind: Kind
    method: Method
    normalize: bool = True  # embeddings have length one
    dense: tuple[DenseSpec, ...] = ()
    labels: tuple[str, ...] = ()
    activation: str = "none"  # of classes: softmax, sigmoid or none
    score_activation: str = "sigmoid"  # of the one number for a pair
    # A language model's answer as a class: ids of the tokens that mean no and yes, whose logits are compared.
    answers: tuple[int, int] | None = None
    max_length: int | None = None  # tokens that the model was tuned for
    dimensions: tuple[int, ...] | None = None  # that an embedding can be cut to; (): any

    def info(self, hidden_size: int) -> PoolingInfo:
        """What requests may ask for."""
        if self.kind == "embed":
            size = self.dense[-1].out_size if self.dense else hidden_size
            dimensions = None if self.dimensions is None else list(self.dimensions)
            return PoolingInfo(["embed", "token_embed", "score"], size, dimensions)
        tasks = ["reward"] if self.kind == "reward" else ["classify"]
        single = len(self.labels) == 1 and self.kind == "classify"
        return PoolingInfo(
            [*tasks, *(["score", "reward"] if single else [])], hidden_size, labels=list(self.labels), pairs=single
        )


def is_for_pooling(folder: Path) -> bool:
    """The folder is one of sentence-transformers."""
    return (folder / "modules.json").is_file()


def read_pooling(
    folder: Path,
    config: ConfigReader,
    kind: Kind,
    method: str,
    encoder: bool,
    token_id: Callable[[str], int | None],
) -> PoolingSpec:
    """`method` other than auto is used in place of what the files say. `token_id` is the tokenizer's."""
    chosen: Any = None if method == "auto" else method
    if kind == "embed":
        return _read_modules(folder, config, chosen, encoder)
    answers = None if encoder else _answers(config, token_id)
    labels = _labels(config) if answers is None else ("LABEL_0",)
    several = config.text("problem_type", "") == "multi_label_classification"
    activation = "softmax" if len(labels) > 1 and not several else "sigmoid"
    return PoolingSpec(
        kind,
        chosen or (_classifier_pooling(config) if encoder else "last"),
        labels=labels,
        activation=activation,
        score_activation=_score_activation(config, folder),
        answers=answers,
        max_length=_max_length(folder),
    )


def _read_modules(folder: Path, config: ConfigReader, method: Method | None, encoder: bool) -> PoolingSpec:
    dimensions = _dimensions(config)
    if not is_for_pooling(folder):
        return PoolingSpec("embed", method or ("cls" if encoder else "last"), dimensions=dimensions)
    found: Method | None = None
    normalize, dense = False, []
    for module in _modules(folder):
        name, path = module.text("type").rsplit(".", 1)[-1], module.text("path", "")
        place = folder / path
        if place.resolve() != folder.resolve() and folder.resolve() not in place.resolve().parents:
            raise module.error("path", f"leads out of the model's folder: {path!r:.80}")
        if name == "Pooling":
            found = _mode(_config(place))
        elif name == "Dense":
            dense.append(_dense(place))
        elif name == "Normalize":
            normalize = True
        elif name != "Transformer" or path:
            raise module.error("type", f"is not supported: {module.text('type')!r:.80} at {path!r:.80}")
    if found is None:
        raise ModelError(f"{folder / 'modules.json'} has no Pooling module")
    return PoolingSpec(
        "embed",
        method or found,
        normalize,
        tuple(dense),
        max_length=_max_length(folder),
        dimensions=dimensions,
    )


def _modules(folder: Path) -> list[ConfigReader]:
    path = folder / "modules.json"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ModelError(f"{path} must hold a list of objects")
    return [ConfigReader(each, str(path)) for each in found]


def _config(folder: Path) -> ConfigReader:
    return ConfigReader(read_json(folder / "config.json"), str(folder / "config.json"))


def _mode(config: ConfigReader) -> Method:
    if config.has("pooling_mode"):
        name = config.text("pooling_mode")
        if name not in SHORT_MODES:
            raise config.error("pooling_mode", f"must be one of {', '.join(SHORT_MODES)}, got {name!r:.80}")
        return SHORT_MODES[name]
    asked = [key for key, value in config.values.items() if key.startswith("pooling_mode_") and value is True]
    if len(asked) != 1 or asked[0] not in MODES:
        raise ModelError(
            f"{config.where}: one of {', '.join(MODES)} must be true alone, got {', '.join(asked) or 'none'}"
        )
    return MODES[asked[0]]


def _dense(folder: Path) -> DenseSpec:
    config = _config(folder)
    activation = _activation(config, config.text("activation_function", "torch.nn.modules.activation.Tanh"))
    sizes = config.integer("in_features", high=2**20), config.integer("out_features", high=2**20)
    return DenseSpec(folder, *sizes, config.flag("bias", True), activation)


def _activation(config: ConfigReader, path: str) -> str:
    name = path.rsplit(".", 1)[-1]
    if name not in ACTIVATIONS:
        raise ModelError(f"{config.where}: the activation {path!r:.80} must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _max_length(folder: Path) -> int | None:
    """sentence-transformers' own key; since its version 6 the tokenizer's."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        path = folder / name
        if not path.is_file():
            return None
        config = ConfigReader(read_json(path), str(path))
        if config.has(key) and not (isinstance(size := config.raw(key), (int, float)) and size > 2**30):  # no limit
            return config.integer(key, high=2**30)
    return None


def _dimensions(config: ConfigReader) -> tuple[int, ...] | None:
    if config.has("matryoshka_dimensions"):
        sizes = config.raw("matryoshka_dimensions")
        if not isinstance(sizes, list) or any(type(size) is not int or size < 1 for size in sizes):
            raise config.error("matryoshka_dimensions", f"must be a list of sizes, got {sizes!r:.80}")
        return tuple(sizes)
    return () if config.flag("is_matryoshka", False) else None


def _labels(config: ConfigReader) -> tuple[str, ...]:
    names = config.raw("id2label", {})
    if isinstance(names, dict) and names and all(isinstance(name, str) for name in names.values()):
        count = len(names)
        if config.has("num_labels") and config.integer("num_labels") != count:
            raise config.error("num_labels", f"must be {count}, as id2label has")
        if set(map(str, range(count))) != set(map(str, names)):
            raise config.error("id2label", f"must name the labels 0 to {count - 1}")
        return tuple(names[key] for key in sorted(names, key=int))
    if names:
        raise config.error("id2label", "must be an object of names")
    return tuple(f"LABEL_{i}" for i in range(config.integer("num_labels", 2, high=2**16)))


def _answers(config: ConfigReader, token_id: Callable[[str], int | None]) -> tuple[int, int] | None:
    if not config.has("classifier_from_token"):
        return None
    tokens = config.texts("classifier_from_token")
    ids = [token_id(token) for token in tokens]
    if len(ids) != 2 or ids[0] is None or ids[1] is None:
        raise config.error("classifier_from_token", f"must be two tokens of the vocabulary, got {tokens!r:.80}")
    return ids[0], ids[1]


def _classifier_pooling(config: ConfigReader) -> Method:
    """ModernBERT's own key; other encoders classify by the first token."""
    name = config.text("classifier_pooling", "cls")
    if name not in ("cls", "mean"):
        raise config.error("classifier_pooling", f"must be cls or mean, got {name!r:.80}")
    return "cls" if name == "cls" else "mean"


def _score_activation(config: ConfigReader, folder: Path) -> str:
    """sentence-transformers' cross-encoders say it in config.json, by one of two names."""
    path = config.section("sentence_transformers").raw("activation_fn", None)
    path = path or config.raw("sbert_ce_default_activation_function", None)
    if path is None:
        return "sigmoid"
    if not isinstance(path, str):
        raise ConfigError(f"{folder / 'config.json'}: the activation of sentence_transformers must be a string")
    return _activation(config, path)
