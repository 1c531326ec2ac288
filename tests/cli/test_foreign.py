"""Flags of other servers: each is honoured, or says what is so here anyway, or is refused with a sentence."""

from __future__ import annotations

from dataclasses import fields

import pytest

from octavo.cli.main import _parser, main
from octavo.core import foreign
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.core.foreign import Foreign
from octavo.llm import LLM
from octavo.server.config import ServerConfig

OURS = {field.name for config in (EngineConfig, ServerConfig) for field in fields(config)}
# The flags that scripts for vLLM use, with a value that they use; and the field that gets it.
HONOURED = {
    "--host 0.0.0.0": "host",
    "--port 80": "port",
    "--uds s": "uds",
    "--api-key a b": "api_key",
    "--served-model-name a b": "served_model_name",
    "--tokenizer t": "tokenizer",
    "--tokenizer-revision r": "tokenizer_revision",
    "--trust-remote-code": "trust_remote_code",
    "--dtype half": "dtype",
    "--max-model-len 32k": "max_model_len",
    "--max-model-len auto": "max_model_len",
    "--quantization awq": "quantization",
    "-q fp8": "quantization",
    "--load-format safetensors": "load_format",
    "--download-dir d": "download_dir",
    "--revision r": "revision",
    "--hf-token t": "hf_token",
    "--hf-overrides {}": "hf_overrides",
    "--hf-overrides.rope_theta 5": "hf_overrides",
    "--seed 5": "seed",
    "--gpu-memory-utilization 0.5": "gpu_memory_utilization",
    "--kv-cache-memory-bytes 1g": "kv_cache_memory_bytes",
    "--kv-cache-dtype fp8": "kv_cache_dtype",
    "--block-size 32": "block_size",
    "--enable-prefix-caching": "enable_prefix_caching",
    "--no-enable-prefix-caching": "enable_prefix_caching",
    "--max-num-seqs 8": "max_num_seqs",
    "--max-num-batched-tokens 64": "max_num_batched_tokens",
    "--max-num-queued-reqs 8": "max_num_queued_reqs",
    "--scheduling-policy priority": "scheduling_policy",
    "--enforce-eager": "enforce_eager",
    "--attention-backend torch": "attention_backend",
    "--chat-template f": "chat_template",
    "--chat-template-content-format openai": "chat_template_content_format",
    "--default-chat-template-kwargs {}": "default_chat_template_kwargs",
    "--default-chat-template-kwargs.enable_thinking false": "default_chat_template_kwargs",
    "--enable-auto-tool-choice": "enable_auto_tool_choice",
    "--tool-call-parser hermes": "tool_call_parser",
    "--reasoning-parser qwen3": "reasoning_parser",
    "--structured-outputs-config.backend guidance": "structured_outputs_config",
    "--generation-config vllm": "generation_config",
    "--override-generation-config.temperature 0.5": "override_generation_config",
    "--otlp-traces-endpoint http://h": "otlp_traces_endpoint",
    "--disable-uvicorn-access-log": "disable_log_requests",
    "--uvicorn-log-level warning": "log_level",
    "--shutdown-timeout 5": "shutdown_timeout",
    "--enable-force-include-usage": "enable_force_include_usage",
    "--enable-per-request-metrics": "enable_per_request_metrics",
    "--return-tokens-as-token-ids": "return_tokens_as_token_ids",
    "--root-path /p": "root_path",
    "--ssl-keyfile k": "ssl_keyfile",
    "--ssl-certfile c": "ssl_certfile",
    '--allowed-origins ["*"]': "allowed_origins",
}
# By setting: what is accepted because it is so anyway, and what is refused. What has become a field stands not here.
OTHERS = {
    "tokenizer_mode": (["--tokenizer-mode auto"], ["--tokenizer-mode mistral"]),
    "tensor_parallel_size": (["--tensor-parallel-size 1", "-tp 1"], ["--tensor-parallel-size 2", "-tp 8"]),
    "pipeline_parallel_size": (["--pipeline-parallel-size 1"], ["-pp 2"]),
    "data_parallel_size": (["--data-parallel-size 1"], ["-dp 2"]),
    "enable_expert_parallel": (["--no-enable-expert-parallel"], ["-ep"]),
    "nnodes": (["--nnodes 1"], ["--nnodes 2"]),
    "node_rank": (["--node-rank 0"], ["--node-rank 1"]),
    "master_addr": (["--master-addr localhost"], ["--master-addr 10.0.0.1"]),
    "master_port": ([], ["--master-port 5"]),
    "distributed_executor_backend": (
        ["--distributed-executor-backend mp"],
        ["--distributed-executor-backend ray"],
    ),
    "enable_chunked_prefill": (["--enable-chunked-prefill"], ["--no-enable-chunked-prefill"]),
    "compilation_config": ([], ['-cc {"mode":3}', "--compilation-config.mode 3"]),
    "optimization_level": (["-O3", "-O 2"], ["-O0"]),
    "cudagraph_capture_sizes": ([], ["--cudagraph-capture-sizes 8"]),
    "speculative_config": ([], ["--speculative-config.method mtp"]),
    "spec_method": ([], ["--spec-method eagle"]),
    "spec_model": ([], ["--spec-model m"]),
    "spec_tokens": (["--spec-tokens 0"], ["--spec-tokens 3"]),
    "enable_lora": (["--no-enable-lora"], ["--enable-lora"]),
    "lora_modules": ([], ["--lora-modules a=b"]),
    "max_loras": ([], ["--max-loras 2"]),
    "max_lora_rank": ([], ["--max-lora-rank 8"]),
    "max_cpu_loras": ([], ["--max-cpu-loras 2"]),
    "limit_mm_per_prompt": ([], ["--limit-mm-per-prompt.image 2"]),
    "mm_processor_kwargs": ([], ["--mm-processor-kwargs.a 1"]),
    "pooler_config": ([], ["--pooler-config.task embed"]),
    "kv_transfer_config": ([], ["--kv-transfer-config.kv_role both"]),
    "kv_events_config": ([], ["--kv-events-config.publisher zmq"]),
    "kv_offloading_size": (["--kv-offloading-size 0"], ["--kv-offloading-size 8"]),
    "cpu_offload_gb": (["--cpu-offload-gb 0"], ["--cpu-offload-gb 8"]),
    "enable_sleep_mode": (["--no-enable-sleep-mode"], ["--enable-sleep-mode"]),
    "disable_log_stats": (["--disable-log-stats"], ["--no-disable-log-stats"]),
    "enable_log_requests": (["--enable-log-requests"], ["--no-enable-log-requests"]),
    "enable_prompt_tokens_details": (
        ["--enable-prompt-tokens-details"],
        ["--no-enable-prompt-tokens-details"],
    ),
    "api_server_count": (["--api-server-count 1"], ["--api-server-count 4"]),
    "headless": (["--no-headless"], ["--headless"]),
    "trust_request_chat_template": (
        ["--no-trust-request-chat-template"],
        ["--trust-request-chat-template"],
    ),
    "middleware": ([], ["--middleware a.b"]),
}
CASES = [(name, *flags) for name, flags in OTHERS.items() if name not in OURS]


def arguments(flag: str) -> list[str]:
    name, _, values = flag.partition(" ")
    return [name, *values.split()]


@pytest.mark.parametrize(("flag", "field"), HONOURED.items())
def test_what_is_honoured(flag: str, field: str) -> None:
    found = vars(_parser().parse_args(["serve", "model", *arguments(flag)]))
    assert field in OURS and field in found and found["model"] == "model"


def refusal(flag: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "model", *arguments(flag)])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1
    return said


@pytest.mark.parametrize(("name", "same", "other"), CASES)
def test_what_is_so_anyway(name: str, same: list[str], other: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for flag in same:
        found = vars(_parser().parse_args(["serve", "model", *arguments(flag)]))
        assert {*found} == {"model", "model_flag", "config", "action"}
    for flag in other:
        said = refusal(flag, capsys)
        assert flag[:2] in said and len(said.split()) > 8


@pytest.mark.parametrize("command", ["bench latency", "bench throughput", "plan", "doctor", "run x", "chat"])
def test_every_command_with_an_engine_knows_them(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _parser().parse_args([*command.split(), "--enable-chunked-prefill"])
    with pytest.raises(SystemExit):
        _parser().parse_args([*command.split(), "--kv-transfer-config", "{}x"])
    assert "stays in the engine" in capsys.readouterr().err


def test_a_flag_is_in_one_table() -> None:
    assert not foreign.ENGINE.keys() & foreign.SERVER.keys()
    for name, each in {**foreign.ENGINE, **foreign.SERVER}.items():
        assert name == name.lower() and each.reason[-1].isalpha()
        if each.switch:
            assert {*each.same} <= {"true", "false"} and each.same


def test_a_whole_and_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    found = vars(_parser().parse_args(["serve", "--hf-overrides.a.b", "1", "m", "--hf_overrides.a.c=x y"]))
    assert found["hf_overrides"] == '{"a": {"b": 1, "c": "x y"}}' and found["model"] == "m"
    assert "as a whole and in parts" in refusal("--hf-overrides.a 1 --hf-overrides {}", capsys)
    assert "expected one argument" in refusal("--hf-overrides.a", capsys)
    assert "there is no flag --hf-overide; did you mean --hf-overrides?" in refusal("--hf-overide.a 1", capsys)


def test_the_same_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, said in (
        ("tensor_parallel_size", 2, "one device"),
        ("enable_lora", True, "adapters"),
        ("speculative_config", {"method": "mtp"}, "speculative"),
        ("logits_processors", [print], "never runs"),
        ("enable_chunked_prefill", False, "pieces"),
        ("no_such_thing", 1, "LLM has no argument 'no_such_thing'"),
    ):
        if name not in OURS:
            with pytest.raises(ConfigError, match=said):
                LLM("/none", **{name: value})
    with pytest.raises(ConfigError, match="/none"):  # all of these say what is so
        LLM("/none", tensor_parallel_size=1, cpu_offload_gb=0, swap_space=None, disable_custom_all_reduce=True)
    assert EngineConfig(dtype="half").dtype == "float16"
    assert EngineConfig(hf_overrides={"a": 1}).overrides == {"a": 1}
    with pytest.raises(ConfigError, match="hf_overrides must be a JSON object"):
        EngineConfig(hf_overrides="[]")


def test_only_what_is_so_is_accepted() -> None:
    one = Foreign("there is one", ("1",))
    one.check("x", 1)
    one.check("x", "1")
    one.check("x", None)
    for wrong in (2, "01", True, [1]):
        with pytest.raises(ConfigError, match=r"x: there is one \(it can only be 1\)"):
            one.check("x", wrong)
