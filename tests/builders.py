"""Small models for tests: random weights, a real byte-level BPE tokenizer and a ChatML template, saved by transformers.

    folder = make_model(tmp_path, "qwen3", num_hidden_layers=3, head_dim=32)

Keyword arguments override the family's config. The weights depend on nothing but the config and `seed`, the
tokenizer (512 tokens) is trained once in a process. `load_reference` is transformers' own model of a folder.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

# family: (transformers config class, transformers model class)
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "ministral": ("MinistralConfig", "MinistralForCausalLM"),
    "seed_oss": ("SeedOssConfig", "SeedOssForCausalLM"),
    "gemma": ("GemmaConfig", "GemmaForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "phi": ("PhiConfig", "PhiForCausalLM"),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM"),
    "phi3": ("Phi3Config", "Phi3ForCausalLM"),
    "glm": ("GlmConfig", "GlmForCausalLM"),
    "glm4": ("Glm4Config", "Glm4ForCausalLM"),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM"),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM"),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM"),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM"),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "cohere": ("CohereConfig", "CohereForCausalLM"),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM"),
    "granite": ("GraniteConfig", "GraniteForCausalLM"),
    "ernie4_5": ("Ernie4_5Config", "Ernie4_5ForCausalLM"),
    "deepseek_v2": ("DeepseekV2Config", "DeepseekV2ForCausalLM"),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "qwen2_moe": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM"),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM"),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM"),
    "minimax_m2": ("MiniMaxM2Config", "MiniMaxM2ForCausalLM"),
    "phimoe": ("PhimoeConfig", "PhimoeForCausalLM"),
    "granitemoe": ("GraniteMoeConfig", "GraniteMoeForCausalLM"),
    "glm4_moe": ("Glm4MoeConfig", "Glm4MoeForCausalLM"),
    "dots1": ("Dots1Config", "Dots1ForCausalLM"),
    "ernie4_5_moe": ("Ernie4_5_MoeConfig", "Ernie4_5_MoeForCausalLM"),
    "exaone4": ("Exaone4Config", "Exaone4ForCausalLM"),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM"),
    "opt": ("OPTConfig", "OPTForCausalLM"),
    "falcon": ("FalconConfig", "FalconForCausalLM"),
    "gptj": ("GPTJConfig", "GPTJForCausalLM"),
    "codegen": ("CodeGenConfig", "CodeGenForCausalLM"),
    "gpt_bigcode": ("GPTBigCodeConfig", "GPTBigCodeForCausalLM"),
    "olmo": ("OlmoConfig", "OlmoForCausalLM"),
    "arcee": ("ArceeConfig", "ArceeForCausalLM"),
    "jais2": ("Jais2Config", "Jais2ForCausalLM"),
    "nemotron": ("NemotronConfig", "NemotronForCausalLM"),
    "apertus": ("ApertusConfig", "ApertusForCausalLM"),
    "helium": ("HeliumConfig", "HeliumForCausalLM"),
    "cwm": ("CwmConfig", "CwmForCausalLM"),
    "hyperclovax": ("HyperCLOVAXConfig", "HyperCLOVAXForCausalLM"),
    "vaultgemma": ("VaultGemmaConfig", "VaultGemmaForCausalLM"),
    "granitemoeshared": ("GraniteMoeSharedConfig", "GraniteMoeSharedForCausalLM"),
    "flex_olmo": ("FlexOlmoConfig", "FlexOlmoForCausalLM"),
    "solar_open": ("SolarOpenConfig", "SolarOpenForCausalLM"),
    "exaone_moe": ("ExaoneMoeConfig", "ExaoneMoeForCausalLM"),
    "mellum": ("MellumConfig", "MellumForCausalLM"),
    "youtu": ("YoutuConfig", "YoutuForCausalLM"),
    "glm4_moe_lite": ("Glm4MoeLiteConfig", "Glm4MoeLiteForCausalLM"),
    "ministral3": ("Ministral3Config", "Ministral3ForCausalLM"),
    "hunyuan_v1_dense": ("HunYuanDenseV1Config", "HunYuanDenseV1ForCausalLM"),
    "hunyuan_v1_moe": ("HunYuanMoEV1Config", "HunYuanMoEV1ForCausalLM"),
    "nanochat": ("NanoChatConfig", "NanoChatForCausalLM"),
    "persimmon": ("PersimmonConfig", "PersimmonForCausalLM"),
    "biogpt": ("BioGptConfig", "BioGptForCausalLM"),
    "xglm": ("XGLMConfig", "XGLMForCausalLM"),
    "gpt_neo": ("GPTNeoConfig", "GPTNeoForCausalLM"),
    "minicpm3": ("MiniCPM3Config", "MiniCPM3ForCausalLM"),
    "granite_swa": ("GraniteSWAConfig", "GraniteSWAForCausalLM"),
    "granitemoe_swa": ("GraniteMoeSWAConfig", "GraniteMoeSWAForCausalLM"),
    "bloom": ("BloomConfig", "BloomForCausalLM"),
    "mpt": ("MptConfig", "MptForCausalLM"),
    "llama4": ("Llama4TextConfig", "Llama4ForCausalLM"),
    "gemma3_whole": ("Gemma3Config", "Gemma3ForConditionalGeneration"),
    "mistral3_whole": ("Mistral3Config", "Mistral3ForConditionalGeneration"),
    "llama4_whole": ("Llama4Config", "Llama4ForConditionalGeneration"),
    "afmoe": ("AfmoeConfig", "AfmoeForCausalLM"),
    "hy_v3": ("HYV3Config", "HYV3ForCausalLM"),
    "qwen2_vl_whole": ("Qwen2VLConfig", "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl_whole": ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl_whole": ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration"),
    "internlm3": ("InternLM3Config", "LlamaForCausalLM"),  # as Llama; the hub's own configs say InternLM3ForCausalLM
}
# Of models that see images too: the kind of text model that is a part, and the smallest other side.
SIDE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDE |= {"image_size": 28, "patch_size": 14}
QWEN_SIDE = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
VISION: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl_whole": ("qwen2_vl_text", {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 64}),
    "qwen2_5_vl_whole": ("qwen2_5_vl_text", {**QWEN_SIDE, "out_hidden_size": 64, "fullatt_block_indexes": [0]}),
    "qwen3_vl_whole": ("qwen3_vl_text", {**QWEN_SIDE, "out_hidden_size": 64, "deepstack_visual_indexes": [0]}),
    "gemma3_whole": ("gemma3_text", SIDE),
    "mistral3_whole": ("mistral", {"model_type": "pixtral", **SIDE}),
    "llama4_whole": (
        "llama4_text",
        {**SIDE, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    ),
}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = (
    "The quick brown fox jumps over the lazy dog.",
    "An octavo is a sheet folded three times into eight leaves, which makes sixteen pages.",
    "Once upon a time there was a printer who kept every page in its place.",
    "What is the capital of France? The capital of France is Paris.",
    '{"name": "octavo", "pages": 16, "folded": true, "sizes": [1, 2, 3.5, null]}',
    "def fold(sheet):\n    return [leaf for leaf in sheet.leaves if leaf is not None]\n",
    "Grüße aus Köln, naïve café, schöne Straße; и немного по-русски; 日本語のテキスト; 😀 👩‍🚀 🇫🇷",
    "1 2 3 4 5 6 7 8 9 10 11 12 100 1000 2024 3.14159",
    "<system>You are a helpful assistant.</system>\n\nHello! How can I help you today?\n",
)


@functools.cache
def tokenizer_json() -> str:
    """A byte-level BPE tokenizer of VOCAB_SIZE tokens; ids 0, 1, 2 are SPECIAL_TOKENS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return str(tokenizer.to_str())


def save_tokenizer(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def make_config(family: str, **overrides: Any) -> Any:
    """A transformers config: 2 layers of 64, 4 heads on 2 KV heads, 512 positions."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": SPECIAL_TOKENS.index("<|im_end|>"),
        "pad_token_id": SPECIAL_TOKENS.index("<|endoftext|>"),
        "initializer_range": 0.1,
    }
    if family in ("mistral", "ministral"):
        values["sliding_window"] = None
    config = getattr(importlib.import_module("transformers"), FAMILIES[family][0])
    if family in VISION:  # the text model is a part
        text = {"model_type": VISION[family][0], **values, **overrides}
        return config(text_config=text, vision_config=VISION[family][1], tie_word_embeddings=False)
    known = {field.name for field in dataclasses.fields(config)}
    for key in ("num_key_value_heads", "head_dim", "intermediate_size"):
        if key not in known:  # it means nothing to this family
            del values[key]
    return config(**{**values, **overrides})


def make_model(
    tmp_path: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    **overrides: Any,
) -> Path:
    """Saves a model with its tokenizer in a folder of its own below `tmp_path`; see the module's docstring."""
    config = make_config(family, **overrides)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(seed)
        model = getattr(importlib.import_module("transformers"), FAMILIES[family][1])(config)
        for name, parameter in model.named_parameters():
            # transformers starts norms at one and biases at zero, which would hide a norm or a bias left out.
            norm = "norm" in name or ".ln_" in name
            if parameter.dim() == 1 or norm or name.endswith("_bias"):
                center = float(norm and name.endswith("weight") and not family.startswith("gemma"))
                torch.nn.init.normal_(parameter, mean=center, std=0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                torch.nn.init.normal_(buffer, std=0.2)
    folder = Path(tempfile.mkdtemp(prefix=f"{family}-", dir=tmp_path))
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    save_tokenizer(folder)
    return folder


def edit_config(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    """Changes keys of a saved config.json, and drops some."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in drop}), encoding="utf-8")


def load_reference(folder: Path) -> Any:
    """transformers' model of a folder, in the checkpoint's dtype, for comparison."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    # Eager attention adds the slopes of Falcon RW twice.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    attention = "sdpa" if config.get("alibi") else "eager"
    auto = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    model = auto.from_pretrained(folder, attn_implementation=attention, dtype="auto")
    return model.eval()
