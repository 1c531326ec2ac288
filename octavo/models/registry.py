"""Architecture names of config.json and the classes that serve them, imported when one is asked for.

`python -m tests.models.docs` writes the table of docs/models.md from this one.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.core.errors import ModelError

if TYPE_CHECKING:
    from octavo.models.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Architecture:
    target: str  # module below octavo.models, and class
    models: str  # that have it
    differs: str  # from Llama in


ARCHITECTURES = {
    "AfmoeForCausalLM": Architecture(
        "afmoe:Afmoe",
        "Trinity (Arcee)",
        "norms before and after each part, and of heads; gated attention; "
        "windows but in every fourth layer, which sees no positions; experts as DeepSeek V3's",
    ),
    "ApertusForCausalLM": Architecture(
        "apertus:Apertus",
        "Apertus",
        "norms of query and key heads; a plain MLP with an activation that is learned, xIELU",
    ),
    "ArceeForCausalLM": Architecture("nemotron:Arcee", "Arcee AFM", "plain MLP with relu squared"),
    "BioGptForCausalLM": Architecture("opt:BioGpt", "BioGPT", "as OPT with gelu; scaled embeddings"),
    "BloomForCausalLM": Architecture(
        "bloom:Bloom",
        "BLOOM, BLOOMZ",
        "no positions but slopes (ALiBi); layer norms, of embeddings too; "
        "plain MLP with gelu; biases; q, k, v in one tensor, by head",
    ),
    "CodeGenForCausalLM": Architecture("gptj:CodeGen", "CodeGen", "as GPT-J; q, k, v in one tensor, in four pieces"),
    "Cohere2ForCausalLM": Architecture(
        "cohere:Cohere2",
        "Command R7B, Command A",
        "as Cohere; windows but in every fourth layer, which sees no positions",
    ),
    "CohereForCausalLM": Architecture(
        "cohere:Cohere",
        "Command R, R+, Aya",
        "attention and MLP in parallel on one layer norm without biases; interleaved rope; scaled logits; "
        "optional layer norms of heads",
    ),
    "CwmForCausalLM": Architecture("helium:Cwm", "Code World Model", "windows in three layers of four"),
    "DeepseekV2ForCausalLM": Architecture(
        "deepseek:DeepseekV2",
        "DeepSeek V2, V2.5, V2-Lite",
        "latent attention; experts, of some groups only, beside shared ones, behind dense layers",
    ),
    "DeepseekV3ForCausalLM": Architecture(
        "deepseek:DeepseekV3",
        "DeepSeek V3, R1, V3.1",
        "as V2; experts are scored by sigmoids and chosen with a bias",
    ),
    "Dots1ForCausalLM": Architecture(
        "glm_moe:Dots1", "dots.llm1", "norms of query and key heads; experts as DeepSeek V3's"
    ),
    "Ernie4_5ForCausalLM": Architecture("ernie:Ernie", "ERNIE 4.5 (dense)", "interleaved rope; optional biases"),
    "Ernie4_5_MoeForCausalLM": Architecture(
        "ernie:ErnieMoe", "ERNIE 4.5 A3B, A47B (text)", "as ERNIE 4.5; experts, chosen with a bias, beside shared ones"
    ),
    "Exaone4ForCausalLM": Architecture(
        "exaone:Exaone4",
        "EXAONE 4.0",
        "norms after each part only, and of query and key heads; windows but in every fourth layer, which sees no "
        "positions",
    ),
    "ExaoneMoeForCausalLM": Architecture(
        "exaone:ExaoneMoe", "K-EXAONE", "as EXAONE 4.0 with norms before each part; experts as DeepSeek V3's"
    ),
    "FalconForCausalLM": Architecture(
        "falcon:Falcon",
        "Falcon 7B, 40B, 180B, RW, Falcon 2 11B",
        "attention and a plain MLP with gelu in parallel on one layer norm or two; q, k, v in one tensor, by key head",
    ),
    "FlexOlmoForCausalLM": Architecture("olmo:FlexOlmo", "FlexOlmo", "as OLMo 2; experts in every layer"),
    "Gemma2ForCausalLM": Architecture(
        "gemma:Gemma2",
        "Gemma 2",
        "as Gemma; norms before and after each part; soft caps on scores and logits; windows in every second layer",
    ),
    "Gemma3ForCausalLM": Architecture(
        "gemma:Gemma3",
        "Gemma 3 (text)",
        "as Gemma 2 without soft caps; norms of query and key heads; windows with a rope of their own in five layers "
        "of six",
    ),
    "Gemma3ForConditionalGeneration": Architecture(
        "text_part:Gemma3Text", "Gemma 3 4B to 27B, without images", "the text model of one that sees images"
    ),
    "GemmaForCausalLM": Architecture(
        "gemma:Gemma", "Gemma, CodeGemma", "norm weights stored less one; scaled embeddings; gelu"
    ),
    "Glm4ForCausalLM": Architecture("glm:Glm4", "GLM-4-0414, GLM-Z1", "as Glm; norms before and after each part"),
    "Glm4MoeForCausalLM": Architecture(
        "glm_moe:Glm4Moe",
        "GLM-4.5, GLM-4.5-Air, GLM-4.6",
        "rotation of half of each head; optional norms of heads; experts as DeepSeek V3's",
    ),
    "Glm4MoeLiteForCausalLM": Architecture("deepseek:Glm4MoeLite", "GLM-4.7-Flash", "as DeepSeek V3"),
    "GlmForCausalLM": Architecture(
        "glm:Glm", "GLM-4-9B", "interleaved rope on half of each head; biases on q, k, v; gate and up in one tensor"
    ),
    "GPTBigCodeForCausalLM": Architecture(
        "gpt2:GPTBigCode", "StarCoder, SantaCoder", "as GPT-2, with one key/value head; no transposed matrices"
    ),
    "GPTJForCausalLM": Architecture(
        "gptj:GPTJ",
        "GPT-J",
        "attention and a plain MLP with gelu in parallel on one layer norm; interleaved rope on a part of each head; "
        "biases of MLP and head",
    ),
    "GPTNeoForCausalLM": Architecture(
        "gpt_neo:GPTNeo", "GPT-Neo", "as GPT-2; scores are not scaled; windows in every second layer"
    ),
    "GPTNeoXForCausalLM": Architecture(
        "gpt_neox:GPTNeoX",
        "Pythia, GPT-NeoX-20B, RedPajama, Dolly 2",
        "attention and a plain MLP with gelu in parallel, with a layer norm for each; biases; partial rotation; q, k, "
        "v in one tensor, by head",
    ),
    "GPT2LMHeadModel": Architecture(
        "gpt2:GPT2",
        "GPT-2",
        "learned positions; layer norms; plain MLP with gelu; biases; transposed matrices, q, k, v in one",
    ),
    "GptOssForCausalLM": Architecture(
        "gpt_oss:GptOss",
        "gpt-oss-20b, gpt-oss-120b",
        "attention sinks; windows in every second layer; experts in stacks, also in MXFP4, with biases and a gate of "
        "their own",
    ),
    "GraniteForCausalLM": Architecture(
        "granite:Granite", "Granite 3.x (dense)", "multipliers of embeddings, residual, scores and logits"
    ),
    "GraniteMoeForCausalLM": Architecture(
        "mixtral:GraniteMoe", "Granite 3.x (1B-A400M, 3B-A800M)", "as Granite; experts in stacks"
    ),
    "GraniteMoeSharedForCausalLM": Architecture(
        "mixtral:GraniteMoeShared",
        "Granite 4.0 previews with shared experts",
        "as GraniteMoe; an MLP beside the experts",
    ),
    "GraniteMoeSWAForCausalLM": Architecture(
        "mixtral:GraniteMoeSWA", "Granite with windows and experts", "as GraniteSWA; experts in stacks"
    ),
    "GraniteSWAForCausalLM": Architecture(
        "granite:GraniteSWA", "Granite with windows", "as Granite; windows but in every fourth layer; attention sinks"
    ),
    "HeliumForCausalLM": Architecture("helium:Helium", "Helium", "interleaved rope; norms rounded once"),
    "HunYuanDenseV1ForCausalLM": Architecture(
        "hunyuan:HunYuan", "Hunyuan 0.5B to 7B", "norms of query and key heads after they are rotated"
    ),
    "HunYuanMoEV1ForCausalLM": Architecture(
        "hunyuan:HunYuanMoe", "Hunyuan-A13B", "as the dense one; experts beside a shared one"
    ),
    "HyperCLOVAXForCausalLM": Architecture(
        "granite:HyperCLOVAX", "HyperCLOVA X SEED Think", "as Granite; norms before and after each part"
    ),
    "HYV3ForCausalLM": Architecture(
        "glm_moe:HunYuan3", "Hunyuan 3", "norms of query and key heads; experts as DeepSeek V3's"
    ),
    "InternLM3ForCausalLM": Architecture(
        "llama:InternLM3", "InternLM3", "`qkv_bias` and `bias` instead of Llama's switches"
    ),
    "Llama4ForCausalLM": Architecture(
        "llama4:Llama4",
        "Llama 4 Scout, Maverick (text)",
        "interleaved rope; norms of rotated heads; attention in chunks but in every fourth layer, which sees no "
        "positions and scales queries by them; experts beside a shared one",
    ),
    # checkpoints converted before transformers fixed the name
    "Jais2ForCausalLM": Architecture("nemotron:Jais2", "Jais 2", "layer norms; plain MLP with relu squared; biases"),
    "Llama4ForConditionalGeneration": Architecture(
        "text_part:Llama4Text", "Llama 4, without images", "the text model of one that sees images"
    ),
    "LLaMAForCausalLM": Architecture("llama:Llama", "LLaMA", "–"),
    "LlamaForCausalLM": Architecture(
        "llama:Llama", "Llama 1 to 3.3, and many others", "– (optional biases: `attention_bias`, `mlp_bias`)"
    ),
    "MellumForCausalLM": Architecture(
        "qwen_moe:Mellum", "Mellum 2", "as Qwen3 with experts; windows with a rope of their own"
    ),
    "MiniCPM3ForCausalLM": Architecture(
        "deepseek:MiniCPM3", "MiniCPM3", "latent attention; multipliers of embeddings, residual and logits"
    ),
    "MiniMaxM2ForCausalLM": Architecture(
        "mixtral:MiniMaxM2",
        "MiniMax-M2",
        "as Mixtral; norms over all query and all key heads; partial rotation; experts scored by sigmoids and chosen "
        "with a bias",
    ),
    "Ministral3ForCausalLM": Architecture(
        "mistral:Ministral3", "Ministral 3 (text)", "queries are scaled by their position"
    ),
    "MinistralForCausalLM": Architecture(
        "mistral:Ministral", "Ministral", "a window in the layers that `layer_types` names"
    ),
    "Mistral3ForConditionalGeneration": Architecture(
        "text_part:Mistral3Text",
        "Mistral Small 3.1, 3.2, Ministral 3, without images",
        "the text model of one that sees images",
    ),
    "MistralForCausalLM": Architecture("mistral:Mistral", "Mistral", "no biases; one sliding window for all layers"),
    "MixtralForCausalLM": Architecture("mixtral:Mixtral", "Mixtral 8x7B, 8x22B", "experts in every layer"),
    "MptForCausalLM": Architecture(
        "bloom:Mpt",
        "MPT 7B, 30B",
        "no positions but slopes (ALiBi); layer norms without biases; "
        "plain MLP with gelu; q, k, v in one tensor, may be clipped",
    ),
    "NanoChatForCausalLM": Architecture(
        "nanochat:NanoChat",
        "nanochat",
        "norms without weights, of embeddings and rotated heads too; plain MLP with relu squared; soft cap of logits",
    ),
    "NemotronForCausalLM": Architecture(
        "nemotron:Nemotron",
        "Nemotron-4, Minitron",
        "layer norms with weights stored less one; plain MLP with relu squared; partial rotation",
    ),
    "OlmoForCausalLM": Architecture(
        "olmo:Olmo", "OLMo", "layer norms without weights; queries, keys and values may be clipped"
    ),
    "Olmo2ForCausalLM": Architecture(
        "olmo:Olmo2", "OLMo 2", "norms after each part only, and over all query and all key heads at once"
    ),
    "Olmo3ForCausalLM": Architecture(
        "olmo:Olmo3", "OLMo 3", "as OLMo 2; windows but in every fourth layer, whose rope alone is scaled"
    ),
    "OlmoeForCausalLM": Architecture(
        "qwen_moe:Olmoe", "OLMoE", "norms over all query and all key heads; experts in every layer"
    ),
    "OPTForCausalLM": Architecture(
        "opt:OPT", "OPT (not 350M), Galactica", "learned positions; layer norms; plain MLP with relu; biases"
    ),
    "PersimmonForCausalLM": Architecture(
        "phi:Persimmon",
        "Persimmon",
        "layer norms, of heads too; plain MLP with relu squared; biases; partial rotation; q, k, v in one tensor",
    ),
    "PhiForCausalLM": Architecture(
        "phi:Phi",
        "Phi-1, Phi-1.5, Phi-2",
        "attention and a plain MLP with gelu in parallel on one layer norm; biases, of the head too; partial rotation",
    ),
    "Phi3ForCausalLM": Architecture(
        "phi3:Phi3",
        "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
        "q, k, v in one tensor, gate and up in another; longrope; partial rotation; one window",
    ),
    "PhimoeForCausalLM": Architecture(
        "mixtral:PhiMoe",
        "Phi-3.5-MoE",
        "as Mixtral; layer norms; biases, of the head too; longrope; experts by sparsemixer",
    ),
    "Qwen2_5_VLForConditionalGeneration": Architecture(
        "text_part:Qwen2VLText", "Qwen2.5-VL, without images", "the text model of one that sees images"
    ),
    "Qwen2ForCausalLM": Architecture(
        "qwen2:Qwen2",
        "Qwen2, Qwen2.5",
        "biases on q, k, v; windows only with `use_sliding_window`, from `max_window_layers` on",
    ),
    "Qwen2MoeForCausalLM": Architecture(
        "qwen_moe:Qwen2Moe",
        "Qwen1.5-MoE, Qwen2-57B-A14B",
        "as Qwen2; experts, in some layers or all, beside an MLP that is weighed by a sigmoid",
    ),
    "Qwen2VLForConditionalGeneration": Architecture(
        "text_part:Qwen2VLText", "Qwen2-VL, without images", "the text model of one that sees images"
    ),
    "Qwen3ForCausalLM": Architecture(
        "qwen3:Qwen3", "Qwen3", "norms of query and key heads; own head size; windows as in Qwen2"
    ),
    "Qwen3MoeForCausalLM": Architecture(
        "qwen_moe:Qwen3Moe", "Qwen3-30B-A3B, 235B-A22B, Qwen3-Coder", "as Qwen3; experts, in some layers or all"
    ),
    "Qwen3VLForConditionalGeneration": Architecture(
        "text_part:Qwen3VLText", "Qwen3-VL, without images", "the text model of one that sees images"
    ),
    "SeedOssForCausalLM": Architecture("llama:SeedOss", "Seed-OSS", "separate switches for q, k, v and output biases"),
    "SmolLM3ForCausalLM": Architecture("smollm3:SmolLM3", "SmolLM3", "every fourth layer sees no positions"),
    "SolarOpenForCausalLM": Architecture("glm_moe:SolarOpen", "Solar Open", "experts as DeepSeek V3's in every layer"),
    "StableLmForCausalLM": Architecture(
        "stablelm:StableLm",
        "StableLM 2, StableLM 3B",
        "layer norms; partial rotation; optional biases on q, k, v; 12B: in parallel, norms of heads",
    ),
    "Starcoder2ForCausalLM": Architecture(
        "starcoder2:Starcoder2", "StarCoder2", "layer norms; plain MLP with gelu; biases; one window"
    ),
    "VaultGemmaForCausalLM": Architecture("gemma:VaultGemma", "VaultGemma", "as Gemma 2 without norms after each part"),
    "XGLMForCausalLM": Architecture("opt:XGLM", "XGLM", "as BioGPT; positions are sines and cosines"),
    "YoutuForCausalLM": Architecture("deepseek:Youtu", "Youtu-LLM", "latent attention"),
}
# What reads and does not generate. `differs` is from BERT, or what is on top of a decoder; any architecture above can
# be made to embed too.
_LAST, _SCORE = "embeddings of the last token", "a score of the last token for each label; reward models have one"
POOLING = {
    "BertForSequenceClassification": Architecture(
        "bert:Bert", "cross-encoders (MS MARCO MiniLM), BERT classifiers", "–"
    ),
    "BertModel": Architecture("bert:Bert", "all-MiniLM, E5, BGE, GTE (first versions)", "–"),
    "DistilBertForSequenceClassification": Architecture(
        "bert:DistilBert", "distilbert-sst-2, DistilBERT classifiers", "as its base; a classifier of its own"
    ),
    "DistilBertModel": Architecture("bert:DistilBert", "multi-qa-distilbert, DistilBERT", "no types; other names"),
    "Gemma2ForSequenceClassification": Architecture("gemma:Gemma2", "reward models on Gemma 2", _SCORE),
    "GemmaForSequenceClassification": Architecture("gemma:Gemma", "classifiers on Gemma", _SCORE),
    "LlamaForSequenceClassification": Architecture("llama:Llama", "Skywork-Reward-Llama-3.1", _SCORE),
    "LlamaModel": Architecture("llama:Llama", "embedding models on Llama", _LAST),
    "MistralForSequenceClassification": Architecture("mistral:Mistral", "reward models on Mistral", _SCORE),
    "MistralModel": Architecture("mistral:Mistral", "E5-Mistral, SFR-Embedding, Linq-Embed", _LAST),
    "ModernBertForSequenceClassification": Architecture(
        "modernbert:ModernBert", "gte-reranker-modernbert", "a dense layer and a norm below the classifier"
    ),
    "ModernBertModel": Architecture(
        "modernbert:ModernBert",
        "gte-modernbert, modernbert-embed",
        "norms before each part; gated MLP; rope instead of positions; windows but in every third layer; no types",
    ),
    "Qwen2ForSequenceClassification": Architecture("qwen2:Qwen2", "reward models on Qwen2", _SCORE),
    "Qwen2Model": Architecture("qwen2:Qwen2", "GTE-Qwen2", _LAST),
    "Qwen3ForSequenceClassification": Architecture(
        "qwen3:Qwen3", "Skywork-Reward-V2, converted Qwen3-Reranker", _SCORE
    ),
    "Qwen3Model": Architecture("qwen3:Qwen3", "Qwen3-Embedding", _LAST),
    "RobertaForSequenceClassification": Architecture(
        "bert:Roberta", "RoBERTa cross-encoders", "a classifier of its own"
    ),
    "RobertaModel": Architecture("bert:Roberta", "all-distilroberta, all-roberta", "positions from the padding id on"),
    "XLMRobertaForSequenceClassification": Architecture("bert:Roberta", "bge-reranker-v2-m3", "as RoBERTa"),
    "XLMRobertaModel": Architecture("bert:Roberta", "multilingual-e5, bge-m3 (dense)", "as RoBERTa"),
}


def load_class(architecture: str) -> type[Decoder]:
    found = ARCHITECTURES.get(architecture) or POOLING.get(architecture)
    if found is None:
        every = [*ARCHITECTURES, *POOLING]
        near = difflib.get_close_matches(architecture, every, n=3, cutoff=0.5)
        known = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(every)}"
        raise ModelError(f"architecture {architecture!r:.80} is not supported; {known}")
    module, name = found.target.split(":")
    family: type[Decoder] = getattr(importlib.import_module(f"octavo.models.{module}"), name)
    return family
