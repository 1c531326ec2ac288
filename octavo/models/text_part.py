"""The text models of those that see images too, for text alone: what the image's side is made of stays on disk.

Their config is the section `text_config` of the whole one.
"""

from __future__ import annotations

from octavo.models.config import ConfigReader
from octavo.models.decoder import Decoder
from octavo.models.gemma import Gemma3
from octavo.models.llama4 import Llama4
from octavo.models.mistral import Ministral3, Mistral
from octavo.models.qwen2 import Qwen2
from octavo.models.qwen3 import Qwen3
from octavo.models.rope import rope_section
from octavo.models.spec import ModelSpec

OTHER_SIDE = ("vision_tower.", "vision_model.", "multi_modal_projector.", "visual.")


class TextPart(Decoder):
    """To be put before a family."""

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        return super().configure(text_config(config))

    def rename(self, name: str) -> str | None:
        """Names as transformers 5 has them, and as before."""
        name = name.removeprefix("language_model.").replace("model.language_model.", "model.")
        return None if name.removeprefix("model.").startswith(OTHER_SIDE) else super().rename(name)


class Gemma3Text(TextPart, Gemma3):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        text = text_config(config).family(vocab_size=262208, num_attention_heads=8, num_key_value_heads=4)
        return Gemma3.configure(text.family(max_position_embeddings=131072, rms_norm_eps=1e-6))


class Llama4Text(TextPart, Llama4):
    pass


class Mistral3Text(TextPart, Ministral3):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        text = text_config(config)
        kind = text.text("model_type", "mistral")
        if kind not in ("mistral", "ministral3"):
            raise text.error("model_type", f"must be mistral or ministral3, got {kind!r:.80}")
        family = Mistral if kind == "mistral" else Ministral3
        return family.configure(text.family(rms_norm_eps=1e-5, head_dim=128))


class Qwen2VLText(TextPart, Qwen2):
    pass


class Qwen3VLText(TextPart, Qwen3):
    pass


def text_config(config: ConfigReader) -> ConfigReader:
    """The section, with what the whole says of both sides. The first Qwen VL have no section.

    Text has the same position in all three dimensions in which they rotate (`mrope`), which is a usual rotation.
    """
    text = config.section("text_config") if config.has("text_config") else config
    flat = {key: value for key, value in rope_section(text).values.items() if not key.startswith("mrope_")}
    flat |= {key: "default" for key in ("type", "rope_type") if flat.get(key) == "mrope"}
    outer = {key: config.values.get(key) for key in ("architectures", "generation_config")}
    inner = {key: config.values.get(key) for key in ("eos_token_id", "dtype", "torch_dtype", "tie_word_embeddings")}
    inner = {key: value for key, value in inner.items() if text.values.get(key) is None}
    rope = {"rope_scaling": None, "rope_parameters": flat or None}
    return ConfigReader({**text.values, **inner, **outer, **rope}, text.where)
