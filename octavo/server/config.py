"""What the HTTP server is told; like `EngineConfig`, every field is a command-line flag."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from typing import Any

from octavo.core.config import flag, json_object
from octavo.core.errors import ConfigError
from octavo.core.foreign import Foreign, switch
from octavo.core.log import FORMATS, LEVELS

CONTENT_FORMATS = ("auto", "string", "openai")
FORM_OPTIONS = ("disable_any_whitespace", "disable_additional_properties")
FOREIGN_FORM_OPTIONS = {
    "backend": Foreign("grammars are followed by llguidance", ("auto", "guidance")),
    "disable_fallback": switch("there is one library of grammars, and nothing to fall back on"),
    "enable_in_reasoning": switch("a form is that of the answer, and reasoning is before it", False),
    "reasoning_parser": Foreign("--reasoning-parser names it"),
}


@dataclass(frozen=True, slots=True)
class ServerConfig:
    host: str = flag("127.0.0.1", "address to listen on")
    port: int = flag(8000, "port to listen on (0: any that is free)")
    uds: str | None = flag(None, "listen on a Unix socket of this path instead")
    admin_socket: str | None = flag(None, "Unix socket for the operator, in a folder that only you may enter")
    ssl_keyfile: str | None = flag(None, "private key for HTTPS, in PEM")
    ssl_certfile: str | None = flag(None, "certificate for HTTPS, in PEM")
    allowed_origins: tuple[str, ...] = flag(
        (), "web pages that may call, as https://HOST or *; may be given more than once"
    )
    api_key: tuple[str, ...] = flag((), "key that clients must send; may be given more than once (or OCTAVO_API_KEY)")
    insecure: bool = flag(False, "allow an address that others can reach without an API key")
    console: bool = flag(True, "serve the web console at /")
    served_model_name: tuple[str, ...] = flag((), "name of the model in the API; may be given more than once")
    root_path: str = flag("", "prefix that a proxy leaves before every path")
    chat_template: str | None = flag(None, "file of a chat template to use instead of the model's")
    chat_template_content_format: str = flag(
        "auto", "how templates get the content of messages (auto: as they are written for)", CONTENT_FORMATS
    )
    default_chat_template_kwargs: str | None = flag(
        None, 'what chat templates are told unless a request says otherwise, as {"enable_thinking": false}'
    )
    tool_call_parser: str | None = flag(None, "how the model writes tool calls (default: read off its chat template)")
    reasoning_parser: str | None = flag(None, "how the model marks its reasoning (default: read off its chat template)")
    enable_auto_tool_choice: bool = flag(True, "let the model choose whether it calls the tools of a request")
    generation_config: str = flag(
        "auto", "sampling defaults: auto takes the model's generation_config.json, vllm none, a folder the one in it"
    )
    override_generation_config: str | None = flag(None, 'sampling defaults beside those, as {"temperature": 0.6}')
    structured_outputs_config: str | None = flag(
        None, 'how all answers with a form are written, as {"disable_any_whitespace": true}'
    )
    enable_force_include_usage: bool = flag(False, "every stream ends with its usage")
    enable_per_request_metrics: bool = flag(False, "every answer has its timings, as with include_metrics")
    return_tokens_as_token_ids: bool = flag(False, "logprobs name tokens by their ids, as token_id:5")
    compat: bool = flag(True, "metrics also have the names that vLLM has given up")
    shutdown_timeout: float = flag(60.0, "seconds that running requests have to finish after SIGTERM")
    resume_requests: str = flag(
        "greedy",
        "requests that go on after the engine has died and was started again: those that are greedy or have a seed, "
        "all (the others are given one), or none",
        ("greedy", "all", "off"),
    )
    watchdog_timeout: float = flag(60.0, "seconds without any progress after which the engine is started again")
    crash_dir: str | None = flag(None, "folder of crash reports (default: octavo/crashes among the user's state)")
    max_stored_responses: int = flag(4096, "answers of /v1/responses that are kept")
    stored_response_seconds: float = flag(3600.0, "how long they are kept")
    data_dir: str | None = flag(None, "folder of uploaded files and batches (default: a private one, gone at the end)")
    max_data_bytes: int = flag(2**30, "size of all files, uploaded and of batches")
    max_requests_per_key: int = flag(0, "requests of one API key at a time; more are refused with 429 (0: no limit)")
    max_queue_seconds: float = flag(0.0, "longest wait for a first step; then 503 (0: no limit)")
    max_body_bytes: int = flag(8 * 2**20, "largest request body")
    otlp_traces_endpoint: str | None = flag(None, "where OpenTelemetry's spans go, as http://HOST:4318/v1/traces")
    log_level: str = flag("info", "least important events to log", LEVELS, ("--uvicorn-log-level",))
    log_format: str = flag("text", "form of the log on standard error", FORMATS)
    disable_log_requests: bool = flag(False, "log only requests that fail", names=("--disable-uvicorn-access-log",))

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be in [0, 65535], got {self.port}")
        if not 0 <= self.shutdown_timeout <= 86400:
            raise ConfigError(f"shutdown_timeout must be in [0, 86400] seconds, got {self.shutdown_timeout}")
        if not 5 <= self.watchdog_timeout <= 86400:
            raise ConfigError(f"watchdog_timeout must be in [5, 86400] seconds, got {self.watchdog_timeout}")
        if self.max_requests_per_key < 0 or self.max_queue_seconds < 0:
            raise ConfigError("max_requests_per_key and max_queue_seconds must not be negative")
        if self.max_data_bytes < 0:
            raise ConfigError("max_data_bytes must not be negative")
        if self.max_stored_responses < 0 or self.stored_response_seconds < 0:
            raise ConfigError("max_stored_responses and stored_response_seconds must not be negative")
        if not 1024 <= self.max_body_bytes <= 2**30:
            raise ConfigError(f"max_body_bytes must be in [1024, {2**30}], got {self.max_body_bytes}")
        if any(not key or not key.isascii() or not key.isprintable() for key in self.api_key):
            raise ConfigError("api_key must be printable ASCII, and not empty")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ConfigError(f"root_path must begin with / and not end with it, got {self.root_path!r}")
        if self.tool_call_parser is not None or self.reasoning_parser is not None:
            from octavo.text.parsing.formats import choose

            choose("", self.tool_call_parser, self.reasoning_parser)  # are there parsers of these names?
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ConfigError("ssl_keyfile and ssl_certfile go together")
        if self.chat_template_content_format not in CONTENT_FORMATS:
            raise ConfigError(f"chat_template_content_format must be one of {', '.join(CONTENT_FORMATS)}")
        _ = self.template_variables, self.sampling_overrides, self.form_options
        for origin in self.origins:
            if origin != "*" and ("://" not in origin or origin.endswith("/")):
                raise ConfigError(f"allowed_origins are like https://example.com, got {origin!r}")
        reachable = self.uds is None and not is_loopback(self.host)
        if not self.api_key and not self.insecure and reachable:
            raise ConfigError(
                f"anyone who reaches {self.host} could use this server: set --api-key (or OCTAVO_API_KEY), "
                "listen on 127.0.0.1, or say --insecure"
            )

    @property
    def template_variables(self) -> dict[str, Any]:
        """`default_chat_template_kwargs` as what it says."""
        return json_object(self.default_chat_template_kwargs, "default_chat_template_kwargs")

    @property
    def sampling_overrides(self) -> dict[str, Any]:
        """`override_generation_config` as what it says."""
        return json_object(self.override_generation_config, "override_generation_config")

    @property
    def form_options(self) -> dict[str, bool]:
        """`structured_outputs_config` as what it says: options of `StructuredOutputs`."""
        name = "structured_outputs_config"
        found = json_object(self.structured_outputs_config, name)
        for key, value in found.items():
            if key in FORM_OPTIONS:
                if not isinstance(value, bool):
                    raise ConfigError(f"{name}: {key} must be true or false")
            elif key not in FOREIGN_FORM_OPTIONS:
                raise ConfigError(f"{name} has no {key}: it knows {', '.join(FORM_OPTIONS)}")
            else:
                FOREIGN_FORM_OPTIONS[key].check(f"{name}: {key}", value)
        return {key: value for key, value in found.items() if key in FORM_OPTIONS}

    @property
    def origins(self) -> tuple[str, ...]:
        """`allowed_origins`, of which each may also be a JSON list, as vLLM has it."""
        found: list[str] = []
        for given in self.allowed_origins:
            try:
                found += json.loads(given) if given.startswith("[") else [given]
            except ValueError as error:
                raise ConfigError(f"allowed_origins: {error}") from None
        if not all(isinstance(origin, str) for origin in found):
            raise ConfigError("allowed_origins must be texts")
        return tuple(found)


def is_loopback(host: str) -> bool:
    """True only for names and addresses that mean this machine and cannot mean another."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
