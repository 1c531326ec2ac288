"""What clients send and what they get, as types: OpenAI's fields and those of vLLM's extras whose feature exists.

A request is decoded strictly: wrong types, duplicate keys, non-finite numbers and half characters are refused with
the dotted path of the field. A field that is not listed here is either in `fields.UNSUPPORTED` and refused, or has no
meaning for us: then it is accepted and named in the `x-octavo-ignored` header.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from octavo.core.errors import RequestError
from octavo.core.params import MAX_N
from octavo.core.structured import StructuredOutputs

MAX_PROMPTS = 256
MAX_ANSWERS = 2048  # prompts times n: each answer is a sequence in the engine from the start
MAX_LOGPROBS = 20  # a token, as in OpenAI's API; the engine itself knows more
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Salt = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._~=+:-]{1,256}\Z")]
RequestId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,128}\Z")]
Milliseconds = Annotated[int, Meta(ge=1, le=2**31 - 1)]
ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}\Z")]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
LogprobCount = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]

# -- requests


class StreamOptions(Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class PlainFormat(Struct, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Struct, tag_field="type", tag="json_object"):
    pass


class JsonSchema(Struct):
    """`strict` changes nothing: a schema is always followed."""

    name: str
    schema: dict[str, Any] | bool | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Struct, tag_field="type", tag="json_schema"):
    json_schema: JsonSchema


class StructuralTagFormat(Struct, tag_field="type", tag="structural_tag"):
    """Either `format`, or vLLM's older `structures` and `triggers`."""

    format: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None

    @property
    def tag(self) -> dict[str, Any]:
        if self.format is not None:
            return {"format": self.format}
        return {"structures": self.structures, "triggers": self.triggers}


class FormatRequest(Struct, kw_only=True):
    """The form that the answer must have: see `octavo.server.structured`."""

    response_format: PlainFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    json_schema: dict[str, Any] | bool | str | None = None
    regex: str | None = None
    ebnf: str | None = None
    grammar: str | None = None
    structural_tag: dict[str, Any] | str | None = None


OTHER_NAMES = {
    "rid": "request_id",
    "extra_key": "cache_salt",
    "no_stop_trim": "include_stop_str_in_output",
    "n_predict": "max_tokens",
}


class GenerationRequest(FormatRequest, kw_only=True):
    """What both ways of asking for text share. None means the model's default, or ours (`SamplingParams`)."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: LogprobCount | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    use_beam_search: bool | None = False
    length_penalty: float | None = None
    stream_interval: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    priority: Priority = 0
    deadline_ms: Milliseconds | None = None
    include_metrics: bool | None = False
    cache_salt: Salt | None = None
    request_id: RequestId | None = None
    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = False
    thinking_token_budget: int | None = None
    # SGLang's and llama.cpp's names of some of these
    rid: RequestId | None = None
    extra_key: Salt | None = None
    no_stop_trim: bool | None = None
    n_predict: int | None = None
    cache_prompt: bool | None = None  # False: nothing is read from the prefix cache

    def __post_init__(self) -> None:
        for name, ours in OTHER_NAMES.items():
            if getattr(self, name) is None:
                continue
            if getattr(self, ours) is not None:
                raise RequestError(f"{name} is another name of {ours}: send one of them.", name)
            setattr(self, ours, getattr(self, name))
        if self.n_predict == -1:  # llama.cpp's word for no limit
            self.max_tokens = None


class CompletionRequest(GenerationRequest, kw_only=True):
    prompt: str | list[str | int | list[TokenId]]
    best_of: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
    echo: bool | None = False
    suffix: str | None = None
    logprobs: LogprobCount | None = None
    add_special_tokens: bool = True


class TextPart(Struct, tag_field="type", tag="text"):
    text: str


class RefusalPart(Struct, tag_field="type", tag="refusal"):
    refusal: str


class ImagePart(Struct, tag_field="type", tag="image_url"):
    image_url: Any


class AudioPart(Struct, tag_field="type", tag="input_audio"):
    input_audio: Any


class FilePart(Struct, tag_field="type", tag="file"):
    file: Any


class FunctionCall(Struct):
    passed_on: ClassVar[bool] = True
    name: str
    arguments: str


class CustomCall(Struct):
    name: str
    input: str


class ToolCall(Struct):
    """Has `function` or `custom`, as its `type` says."""

    passed_on: ClassVar[bool] = True
    function: FunctionCall | None = None
    custom: CustomCall | None = None
    id: str | None = None
    type: Literal["function", "custom"] = "function"

    def __post_init__(self) -> None:
        _check_type(self)


class Function(Struct):
    """What may be called. The chat template gets it as it came."""

    passed_on: ClassVar[bool] = True
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class PlainInput(Struct, tag_field="type", tag="text"):
    pass


class InputGrammar(Struct):
    definition: Annotated[str, Meta(min_length=1, max_length=1 << 16)]
    syntax: Literal["lark", "regex"]


class GrammarInput(Struct, tag_field="type", tag="grammar"):
    grammar: InputGrammar


class Custom(Struct):
    """A tool whose input is text. With a grammar, its calls are always enforced."""

    name: ToolName
    description: str | None = None
    format: PlainInput | GrammarInput | None = None


class Tool(Struct):
    """Has `function` or `custom`, as its `type` says."""

    passed_on: ClassVar[bool] = True
    function: Function | None = None
    custom: Custom | None = None
    type: Literal["function", "custom"] = "function"

    def __post_init__(self) -> None:
        _check_type(self)


def _check_type(tool: Tool | ToolCall) -> None:
    if getattr(tool, tool.type) is None:
        raise ValueError(f"What is of the type {tool.type} needs the field {tool.type}")


class NamedFunction(Struct):
    name: str


class NamedChoice(Struct, tag_field="type", tag="function"):
    function: NamedFunction


class CustomChoice(Struct, tag_field="type", tag="custom"):
    custom: NamedFunction


class AllowedTools(Struct):
    mode: Literal["auto", "required"]
    tools: list[NamedChoice | CustomChoice]


class AllowedChoice(Struct, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


class Message(Struct):
    """One turn, checked. The chat template gets it as it came: it may know more fields than we do."""

    passed_on: ClassVar[bool] = True
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[TextPart | RefusalPart | ImagePart | AudioPart | FilePart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None


class ChatRequest(GenerationRequest, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: LogprobCount | None = None
    echo: bool | None = False
    add_generation_prompt: bool | None = None  # None: unless the last message is continued
    continue_final_message: bool = False
    add_special_tokens: bool = False
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_prompt_text: bool | None = False
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | CustomChoice | AllowedChoice | None = None
    parallel_tool_calls: bool | None = True
    functions: list[Function] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: bool | None = True


class TokenizeRequest(Struct, kw_only=True):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = False
    add_generation_prompt: bool | None = None  # None: unless the last message is continued
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None


class DetokenizeRequest(Struct, kw_only=True):
    model: str | None = None
    tokens: list[TokenId]


# -- answers


class RequestTimings(Struct):
    """What vLLM sends as `metrics`."""

    time_to_first_token_ms: float | None = None
    generation_time_ms: float | None = None
    queue_time_ms: float | None = None
    mean_itl_ms: float | None = None
    tokens_per_second: float | None = None


class PromptTokensDetails(Struct):
    cached_tokens: int


class CompletionTokensDetails(Struct):
    reasoning_tokens: int


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class PromptLogprob(Struct):
    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(Struct):
    name: str
    arguments: str


class CalledCustom(Struct):
    name: str
    input: str


class CalledTool(Struct, kw_only=True):
    id: str
    type: Literal["function", "custom"] = "function"
    function: CalledFunction | UnsetType = UNSET
    custom: CalledCustom | UnsetType = UNSET


class ChatMessage(Struct):
    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CalledTool] | UnsetType = UNSET
    function_call: CalledFunction | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    metrics: RequestTimings | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_text: str | UnsetType = UNSET


class FunctionDelta(Struct, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class CustomDelta(Struct, kw_only=True):
    name: str | UnsetType = UNSET
    input: str


class ToolDelta(Struct, kw_only=True):
    index: int
    id: str | UnsetType = UNSET
    type: Literal["function", "custom"] | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET
    custom: CustomDelta | UnsetType = UNSET


class Delta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class ChatChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None | UnsetType = UNSET
    metrics: RequestTimings | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_text: str | UnsetType = UNSET


class CompletionLogprobs(Struct):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """The whole answer, or a chunk of it: they have one form."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None | UnsetType = UNSET
    metrics: RequestTimings | UnsetType = UNSET


class ModelCard(Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    max_model_len: int
    root: str
    owned_by: str = "octavo"
    parent: str | None = None
    tasks: list[str]  # what it can do: generate, or embed, classify, score ...


class ModelList(Struct, tag_field="object", tag="list"):
    data: list[ModelCard]


class Tokenized(Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class TokenizerInfo(Struct):
    """What evaluation harnesses ask before they leave tokenizing to the server."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None


class Detokenized(Struct):
    prompt: str
