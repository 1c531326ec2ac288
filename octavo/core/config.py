"""Configuration: frozen dataclasses, resolved once, passed down. Command-line flags are made from these fields.

A field's metadata is its flag: `help` is the text, `choices` the values allowed, `names` other names.
`EngineConfig` is what the user said; the engine resolves what was left open (dtype, context, cache size) and prints
each decision with its reason.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass, field, fields
from typing import Any

from octavo.core.errors import ConfigError


def flag(default: Any, help: str, choices: tuple[str, ...] | None = None, names: tuple[str, ...] = ()) -> Any:
    """A dataclass field that is also a command-line flag; `names` are the flag's other names."""
    return field(default=default, metadata={"help": help, "choices": choices, "names": names})


def json_object(text: str | None, name: str) -> dict[str, Any]:
    """What a field of this name says as JSON; {} if nothing."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{name} must be a JSON object")
    return found


# Other names of values.
SAME_DTYPES = {"half": "float16", "float": "float32"}
QUANTIZATIONS = (
    *("fp8", "int8", "int4", "awq", "awq_marlin", "gptq", "gptq_marlin", "auto-round", "bitsandbytes"),
    *("compressed-tensors", "fbgemm_fp8", "gguf", "mxfp4", "gpt_oss_mxfp4"),
)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    model: str | None = flag(None, "Hugging Face id or a folder; the demo model when it is left out")
    tokenizer: str | None = flag(None, "Hugging Face id or folder of the tokenizer (default: the model's)")
    revision: str | None = flag(None, "branch, tag or commit of the model on the hub")
    tokenizer_revision: str | None = flag(None, "branch, tag or commit of the tokenizer, where --tokenizer names one")
    download_dir: str | None = flag(None, "folder for what comes from the hub (default: the hub's own cache)")
    hf_token: str | None = flag(None, "key for the hub (default: HF_TOKEN, or the one that was stored)")
    hf_overrides: str | None = flag(None, 'what to change in the model\'s config.json, as {"rope_theta": 500000}')
    trust_remote_code: bool = flag(False, "only False: nothing from a model folder ever runs")
    dtype: str = flag("auto", "type of weights and KV cache", ("auto", "bfloat16", "float16", "float32", *SAME_DTYPES))
    load_format: str = flag("auto", "dummy makes random weights without reading any", ("auto", "safetensors", "dummy"))
    quantization: str | None = flag(
        None,
        "quantise a plain model's linear layers while it is loaded (fp8, int8, int4); a quantised checkpoint says "
        "itself what it is, and may be called so",
        QUANTIZATIONS,
        ("-q",),
    )
    runner: str = flag(
        "auto",
        "generate answers, or read texts and pool what the model makes of them (auto: what the model was made for)",
        ("auto", "generate", "pooling"),
    )
    convert: str = flag(
        "auto",
        "what a pooling model gives (auto: what its files say)",
        ("auto", "none", "embed", "classify", "reward"),
    )
    pooling_type: str = flag(
        "auto",
        "token that stands for a text, or the mean of all (auto: what the model's files say, else cls for an encoder "
        "and last for a decoder)",
        ("auto", "cls", "last", "mean"),
    )
    device: str = flag("auto", "where the model runs", ("auto", "cpu", "cuda"))
    max_model_len: int | None = flag(None, "longest prompt and answer in tokens (default: the model's)")
    block_size: int = flag(16, "tokens in a KV cache block")
    max_num_seqs: int | None = flag(None, "sequences that run at once (default: 1024 on a GPU, 256 on a CPU)")
    max_num_batched_tokens: int | None = flag(None, "tokens computed in a step (default: 8192 on a GPU, 2048 on a CPU)")
    long_prefill_token_threshold: int = flag(
        0, "tokens of one prompt computed in a step at most (0: a quarter of a step while others generate)"
    )
    gpu_memory_utilization: float = flag(0.92, "share of the GPU's memory that weights, cache and workspace may take")
    kv_cache_memory_bytes: int | None = flag(None, "size of the KV cache in bytes instead of what is left over")
    kv_cache_dtype: str = flag(
        "auto",
        "type of the KV cache: of one byte (fp8 is e4m3), with a scale for each token's head",
        ("auto", "fp8", "fp8_e4m3", "int8"),
    )
    num_kv_blocks: int | None = flag(None, "size of the KV cache in blocks instead of what is left over")
    enable_prefix_caching: bool = flag(True, "keep the KV of prompts and answers for later requests that begin alike")
    scheduling_policy: str = flag(
        "fcfs",
        "waiting requests go as they came, by priority, or in fair turns of the keys",
        ("fcfs", "priority", "fair"),
    )
    max_num_queued_reqs: int = flag(8192, "requests that may wait; more are refused with 503")
    attention_backend: str = flag(
        "auto", "auto takes the first that supports the model", ("auto", "torch", "triton", "hopper", "latent")
    )
    enforce_eager: bool = flag(False, "never use CUDA graphs")
    overlap: bool | None = flag(None, "plan the next step while one runs (default: on a GPU)")
    seed: int = flag(0, "seed of dummy weights and of requests that bring none")

    def __post_init__(self) -> None:
        if self.trust_remote_code:
            raise ConfigError("trust_remote_code: code from a model folder is never run; leave it False")
        object.__setattr__(self, "dtype", SAME_DTYPES.get(self.dtype, self.dtype))
        if isinstance(self.hf_overrides, dict):
            object.__setattr__(self, "hf_overrides", json.dumps(self.hf_overrides))
        _ = self.overrides
        for name, low, high in (
            ("max_model_len", 1, 2**24),
            ("block_size", 1, 1024),
            ("max_num_seqs", 1, 65536),
            ("max_num_batched_tokens", 1, 2**20),
            ("long_prefill_token_threshold", 0, 2**20),
            ("kv_cache_memory_bytes", 1, 2**50),
            ("num_kv_blocks", 1, 2**31 - 1),
            ("max_num_queued_reqs", 1, 2**31 - 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} must be in [{low}, {high}], got {value}")
        if not 0.05 <= self.gpu_memory_utilization <= 1.0:
            raise ConfigError(f"gpu_memory_utilization must be in [0.05, 1], got {self.gpu_memory_utilization}")
        for f in fields(self):
            choices = f.metadata["choices"]
            if choices is not None and getattr(self, f.name) not in (*choices, f.default):
                raise ConfigError(f"{f.name} must be one of {', '.join(choices)}, got {getattr(self, f.name)!r}")

    @property
    def overrides(self) -> dict[str, Any]:
        """`hf_overrides` as what it says."""
        return json_object(self.hf_overrides, "hf_overrides")


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The KV cache and the row table, resolved."""

    num_blocks: int  # pages: each is a block of tokens for the layers of one group
    block_size: int
    max_rows: int  # sequences that run at once
    max_model_len: int
    prefix_caching: bool = True
    debug: bool = False  # poison what is freed, so that whoever reads it is found out
    # One for each group of layers, which has pages of its own: tokens that its layers see, None for all.
    windows: tuple[int | None, ...] = (None,)

    @property
    def blocks_per_row(self) -> int:
        return -(-self.max_model_len // self.block_size)

    def pages_for(self, blocks: int) -> int:
        """Pages that a sequence of so many blocks of tokens needs at least, all groups together, to go on."""
        return sum(min(blocks, self.pages_of(window)) if window else blocks for window in self.windows)

    def pages_of(self, window: int) -> int:
        """That hold what a token sees, and the next token."""
        return -(-window // self.block_size) + 2

    @property
    def capacity(self) -> int:
        """Tokens that one sequence can hold at most."""
        blocks = bisect_right(range(self.blocks_per_row + 1), self.num_blocks, key=self.pages_for) - 1
        return min(self.max_model_len, blocks * self.block_size)


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    max_tokens_per_step: int
    max_chunk: int = 0  # tokens of one prompt computed in a step at most; 0: a share while others generate
    # A token that attends to more than `context_cost` tokens counts as that many times it: a step late in a long prompt
    # is cut shorter, so that it does not stall those who generate. 0: every token counts as one.
    context_cost: float = 0.0
    policy: str = "fcfs"
    seed: int = 0
