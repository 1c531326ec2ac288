"""Settings of other servers that are none of ours, so that scripts written for them run or are told why they cannot.

Each has the values that say what is so here anyway: these are accepted. Any other is refused with the reason. None is
accepted and then dropped. A setting that is a field of `EngineConfig` or `ServerConfig` does not stand here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from octavo.core.errors import ConfigError


class Foreign(NamedTuple):
    """`same` are the values that are accepted; a `switch` has "true" or "false" and is a flag without a value."""

    reason: str
    same: tuple[str, ...] = ()
    switch: bool = False
    short: tuple[str, ...] = ()  # its other names as a flag

    def check(self, name: str, value: Any) -> None:
        """ConfigError, naming it as `name`, unless the value says what is so anyway."""
        text = str(value).lower() if isinstance(value, bool) or value is None else str(value)
        if value not in (None, {}, [], "") and text not in self.same:
            so = f" (it can only be {' or '.join(self.same)})" if self.same and not self.switch else ""
            raise ConfigError(f"{name}: {self.reason}{so}")


def switch(reason: str, so: bool | None = None) -> Foreign:
    """`so`: what is the case here; None, where it has no meaning."""
    return Foreign(reason, ("true", "false") if so is None else (str(so).lower(),), True)


_ONE_DEVICE = "a model runs on one device here; several of them are not supported yet"
_ONE_MACHINE = "a model runs on one machine here"
_NO_CODE = "code that is not Octavo's own never runs in its processes"
_NO_DRAFTS = "speculative decoding is not supported yet"
_NO_ADAPTERS = "LoRA adapters are not supported yet"
_NO_MEDIA = "models take text only so far"
_NO_TRANSFER = "the KV cache stays in the engine that made it"
_NO_OFFLOAD = "nothing is kept in the CPU's memory: what is preempted is computed again"
_NO_COMPILER = "there is no compiler to set up: kernels come ready, and --enforce-eager turns CUDA graphs off"
_ONE_FRONT = "one process answers HTTP"

ENGINE: Mapping[str, Foreign] = {
    "tokenizer_mode": Foreign("the tokenizer is read from tokenizer.json", ("auto", "hf")),
    "skip_tokenizer_init": switch("texts cannot be read or written without the tokenizer", False),
    "code_revision": Foreign(_NO_CODE),
    "logits_processors": Foreign(_NO_CODE),
    "tensor_parallel_size": Foreign(_ONE_DEVICE, ("1",), short=("-tp",)),
    "pipeline_parallel_size": Foreign(_ONE_DEVICE, ("1",), short=("-pp",)),
    "data_parallel_size": Foreign(_ONE_DEVICE, ("1",), short=("-dp",)),
    "enable_expert_parallel": switch(_ONE_DEVICE, False)._replace(short=("-ep",)),
    "disable_custom_all_reduce": switch(_ONE_DEVICE),
    "distributed_executor_backend": Foreign("the engine is a process of its own", ("mp", "uni")),
    "nnodes": Foreign(_ONE_MACHINE, ("1",)),
    "node_rank": Foreign(_ONE_MACHINE, ("0",)),
    "master_addr": Foreign(_ONE_MACHINE, ("127.0.0.1", "localhost")),
    "master_port": Foreign(_ONE_MACHINE),
    "enable_chunked_prefill": switch("long prompts are always computed in pieces", True),
    "compilation_config": Foreign(_NO_COMPILER, short=("-cc",)),
    "optimization_level": Foreign(_NO_COMPILER, ("1", "2", "3"), short=("-O",)),
    "attention_config": Foreign("--attention-backend chooses one of the backends that there are"),
    "quantization_config": Foreign("--quantization names a format; what a checkpoint has, it says itself"),
    "profiler_config": Foreign("there is no profiler to set up"),
    "cudagraph_capture_sizes": Foreign("CUDA graphs are recorded for the sizes that batches have"),
    "speculative_config": Foreign(_NO_DRAFTS),
    "spec_method": Foreign(_NO_DRAFTS),
    "spec_model": Foreign(_NO_DRAFTS),
    "spec_tokens": Foreign(_NO_DRAFTS, ("0",)),
    "enable_lora": switch(_NO_ADAPTERS, False),
    "lora_modules": Foreign(_NO_ADAPTERS),
    "max_loras": Foreign(_NO_ADAPTERS),
    "max_lora_rank": Foreign(_NO_ADAPTERS),
    "max_cpu_loras": Foreign(_NO_ADAPTERS),
    "limit_mm_per_prompt": Foreign(_NO_MEDIA),
    "mm_processor_kwargs": Foreign(_NO_MEDIA),
    "allowed_local_media_path": Foreign(_NO_MEDIA),
    "allowed_media_domains": Foreign(_NO_MEDIA),
    "pooler_config": Foreign("--pooling-type says which token stands for a text, the model's files the rest"),
    "kv_transfer_config": Foreign(_NO_TRANSFER),
    "kv_events_config": Foreign(_NO_TRANSFER),
    "kv_offloading_size": Foreign(_NO_OFFLOAD, ("0", "0.0")),
    "cpu_offload_gb": Foreign(_NO_OFFLOAD, ("0", "0.0")),
    "swap_space": Foreign(_NO_OFFLOAD, ("0", "0.0")),
    "enable_sleep_mode": switch("the engine does not give its memory back while it lives", False),
    "disable_log_stats": switch("statistics are at /metrics, not in the log", True),
}
SERVER: Mapping[str, Foreign] = {
    "middleware": Foreign(_NO_CODE),
    "tool_parser_plugin": Foreign(_NO_CODE),
    "reasoning_parser_plugin": Foreign(_NO_CODE),
    "api_server_count": Foreign(_ONE_FRONT, ("1",)),
    "headless": switch(_ONE_FRONT, False),
    "disable_frontend_multiprocessing": switch("the engine is a process of its own", False),
    "enable_log_requests": switch(
        "the log has a line for every request, or with --disable-log-requests failures", True
    ),
    "max_log_len": Foreign("prompts are never logged"),
    "max_logprobs": Foreign("the likeliest 20 of a token are what can be asked for", ("20",)),
    "enable_prompt_tokens_details": switch("usage always has prompt_tokens_details", True),
    "enable_request_id_headers": switch("every answer has the header x-request-id", True),
    "enable_tokenizer_info_endpoint": switch("/tokenizer_info is always there", True),
    "exclude_tools_when_tool_choice_none": switch("with tool_choice none the model is not told of the tools", True),
    "trust_request_chat_template": switch("a chat template is code, and not accepted from clients", False),
    "response_role": Foreign("answers are the assistant's", ("assistant",)),
    "disable_fastapi_docs": switch("there are no such pages; /openapi.json is the document", True),
    "tool_server": Foreign("only clients run tools"),
    "allow_credentials": switch("cookies mean nothing here", False),
    "allowed_methods": Foreign("pages of --allowed-origins may use every method", ('["*"]', "*")),
    "allowed_headers": Foreign("pages of --allowed-origins may send every header", ('["*"]', "*")),
    "ssl_ca_certs": Foreign("clients are known by their API key, not by certificates"),
    "ssl_cert_reqs": Foreign("clients are known by their API key, not by certificates", ("0",)),
}
_NO_HUB = "data sets of the hub are not read here: --dataset-name custom takes lines of JSON"
_NO_MEDIA_LOAD = "prompts are texts and token ids only so far"
BENCH_SERVE: Mapping[str, Foreign] = {
    "use_beam_search": switch("requests are streams, and beam search cannot be: octavo bench latency has it", False),
    "enable_multimodal_chat": switch(_NO_MEDIA_LOAD, False),
    "custom_ensure_client_side_data": switch(_NO_MEDIA_LOAD, False),
    "no_reranker": switch("random prompts for rerankers are not there", False),
    **{f"hf_{name}": Foreign(_NO_HUB) for name in ("name", "subset", "split", "output_len")},
    **{f"speed_bench_{name}": Foreign(_NO_HUB) for name in ("dataset_subset", "output_len", "category")},
    **{f"blazedit_{name}": Foreign(_NO_HUB) for name in ("min_distance", "max_distance")},
    "bfcl_categories": Foreign(_NO_HUB),
    **{
        f"random_mm_{name}": Foreign(_NO_MEDIA_LOAD)
        for name in ("base_items_per_request", "num_mm_items_range_ratio", "limit_mm_per_prompt", "bucket_config")
    },
    **{f"asr_{name}": Foreign(_NO_MEDIA_LOAD) for name in ("min_audio_len_sec", "max_audio_len_sec")},
}
BENCH_THROUGHPUT: Mapping[str, Foreign] = {
    "lora_path": Foreign(_NO_ADAPTERS),
    "lora_assignment": Foreign(_NO_ADAPTERS, ("random",)),
    **{f"hf_{name}": Foreign(_NO_HUB) for name in ("subset", "split")},
}
DATASETS: Mapping[str, str] = {
    **dict.fromkeys(("hf", "speed_bench", "sonnet"), _NO_HUB),
    "burstgpt": "its rows are requests of a trace: write them as lines for timed_trace",
    "random-rerank": "octavo bench serve sends rerankers nothing; --backend openai-embeddings measures reading",
    **dict.fromkeys(("random-mm", "custom_mm", "custom_image", "custom_audio"), _NO_MEDIA_LOAD),
}
_ONLY_TEXT = "completions, chats and embeddings are measured here"
BACKENDS: Mapping[str, str] = dict.fromkeys(
    (
        *("openai-responses", "openai-audio", "openai-embeddings-chat", "openai-embeddings-clip"),
        *("openai-embeddings-vlm2vec", "infinity-embeddings", "infinity-embeddings-clip", "vllm-pooling"),
        *("vllm-rerank", "tgi", "lmdeploy", "sglang", "llama.cpp", "deepspeed-mii", "scalellm", "tensorrt-llm"),
    ),
    _ONLY_TEXT,
)
BENCHMARKS: Mapping[str, str] = {
    "sweep": "a rate after the other is octavo bench serve --request-rate 1 2 4; other sweeps are a shell's loop",
    "forward": "octavo bench latency --profile, or scripts/bench of the repository, time the parts of a step",
    "mm-processor": _NO_MEDIA,
}
