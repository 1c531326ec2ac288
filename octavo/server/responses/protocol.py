"""What clients of /v1/responses send and get, as types. The rules for other fields are those of
`octavo.server.protocol`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from octavo.server.protocol import LogprobCount, Milliseconds, Priority, RequestId, Salt, TokenLogprob

Status = Literal["completed", "incomplete", "in_progress", "queued", "failed", "cancelled"]

# -- requests


class InputText(Struct, tag_field="type", tag="input_text"):
    text: str


class PastText(Struct, tag_field="type", tag="output_text"):
    text: str


class PastRefusal(Struct, tag_field="type", tag="refusal"):
    refusal: str


class InputImage(Struct, tag_field="type", tag="input_image"):
    image_url: Any = None
    file_id: str | None = None
    detail: str | None = None


class InputFile(Struct, tag_field="type", tag="input_file"):
    file_id: str | None = None
    file_data: str | None = None
    file_url: str | None = None


class PastReasoning(Struct, tag_field="type", tag="reasoning_text"):
    text: str


class Summary(Struct, tag_field="type", tag="summary_text"):
    text: str


Part = InputText | PastText | PastRefusal | InputImage | InputFile | PastReasoning | Summary


class InputItem(Struct, omit_defaults=True):
    """One item of the input: which fields it must have depends on its type."""

    type: Literal[
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "reasoning",
        "item_reference",
    ] = "message"
    id: str | None = None
    status: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[Part] | None = None
    summary: list[Summary] | None = None


class FunctionTool(Struct, tag_field="type", tag="function"):
    """These, and custom tools, clients run themselves: there are no others."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class PlainInput(Struct, tag_field="type", tag="text"):
    pass


class GrammarInput(Struct, tag_field="type", tag="grammar"):
    definition: str
    syntax: Literal["lark", "regex"]


class CustomTool(Struct, tag_field="type", tag="custom"):
    name: str
    description: str | None = None
    format: PlainInput | GrammarInput = field(default_factory=PlainInput)


class NamedTool(Struct, tag_field="type", tag="function"):
    name: str


class NamedCustom(Struct, tag_field="type", tag="custom"):
    name: str


class AllowedTools(Struct, tag_field="type", tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: list[NamedTool | NamedCustom]


class PlainFormat(Struct, tag_field="type", tag="text"):
    pass


class JsonFormat(Struct, tag_field="type", tag="json_object"):
    pass


class SchemaFormat(Struct, tag_field="type", tag="json_schema"):
    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct):
    format: PlainFormat | JsonFormat | SchemaFormat = field(default_factory=PlainFormat)
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Struct):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(Struct):
    include_obfuscation: bool = False


class ResponsesRequest(Struct, kw_only=True):
    input: str | list[InputItem]
    model: str | None = None
    background: bool | None = False
    include: list[str] | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    parallel_tool_calls: bool | None = True
    previous_response_id: str | None = None
    reasoning: Reasoning | None = None
    store: bool | None = True
    stream: bool | None = False
    stream_options: ResponseStreamOptions | None = None
    temperature: float | None = None
    text: TextConfig | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | NamedCustom | AllowedTools | None = None
    tools: list[FunctionTool | CustomTool] | None = None
    top_logprobs: LogprobCount | None = None
    top_p: float | None = None
    truncation: Literal["auto", "disabled"] | None = "disabled"
    # What vLLM's clients may add
    cache_salt: Salt | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    deadline_ms: Milliseconds | None = None
    frequency_penalty: float | None = None
    ignore_eos: bool | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    priority: Priority = 0
    repetition_penalty: float | None = None
    request_id: RequestId | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    structured_outputs: dict[str, Any] | None = None
    top_k: int | None = None


# -- answers


class OutputText(Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    text: str


class OutputMessage(Struct, tag_field="type", tag="message"):
    id: str
    status: str
    content: list[OutputText]
    role: str = "assistant"


class ReasoningItem(Struct, tag_field="type", tag="reasoning"):
    id: str
    status: str
    content: list[ReasoningText]
    summary: list[Summary] = field(default_factory=list)


class FunctionCallItem(Struct, tag_field="type", tag="function_call"):
    id: str
    status: str
    call_id: str
    name: str
    arguments: str


class CustomCallItem(Struct, tag_field="type", tag="custom_tool_call"):
    id: str
    status: str
    call_id: str
    name: str
    input: str


OutputItem = OutputMessage | ReasoningItem | FunctionCallItem | CustomCallItem


class InputTokensDetails(Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    reasoning_tokens: int


class ResponseUsage(Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(Struct):
    code: str
    message: str


class IncompleteDetails(Struct):
    reason: str


class ResponseObject(Struct, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    tool_choice: Any
    tools: list[FunctionTool | CustomTool]
    text: TextConfig
    background: bool
    store: bool
    completed_at: int | None = None
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    reasoning: Reasoning | None = None
    service_tier: str = "default"
    top_logprobs: int = 0
    truncation: str = "disabled"
    usage: ResponseUsage | None = None


class ResponseDeleted(Struct):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputItems(Struct, tag_field="object", tag="list"):
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


# -- events


class Event(Struct, tag_field="type"):
    sequence_number: int


class ResponseEvent(Event):
    response: ResponseObject


class Created(ResponseEvent, tag="response.created"):
    pass


class Queued(ResponseEvent, tag="response.queued"):
    pass


class InProgress(ResponseEvent, tag="response.in_progress"):
    pass


class Completed(ResponseEvent, tag="response.completed"):
    pass


class Incomplete(ResponseEvent, tag="response.incomplete"):
    pass


class Failed(ResponseEvent, tag="response.failed"):
    pass


class ItemAdded(Event, tag="response.output_item.added"):
    output_index: int
    item: OutputItem


class ItemDone(Event, tag="response.output_item.done"):
    output_index: int
    item: OutputItem


class PartEvent(Event):
    output_index: int
    item_id: str
    content_index: int
    part: OutputText | ReasoningText


class PartAdded(PartEvent, tag="response.content_part.added"):
    pass


class PartDone(PartEvent, tag="response.content_part.done"):
    pass


class TextDelta(Event, tag="response.output_text.delta"):
    output_index: int
    item_id: str
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class TextDone(Event, tag="response.output_text.done"):
    output_index: int
    item_id: str
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class ReasoningDelta(Event, tag="response.reasoning_text.delta"):
    output_index: int
    item_id: str
    content_index: int
    delta: str


class ReasoningDone(Event, tag="response.reasoning_text.done"):
    output_index: int
    item_id: str
    content_index: int
    text: str


class ArgumentsDelta(Event, tag="response.function_call_arguments.delta"):
    output_index: int
    item_id: str
    delta: str


class ArgumentsDone(Event, tag="response.function_call_arguments.done"):
    output_index: int
    item_id: str
    name: str
    arguments: str


class InputDelta(Event, tag="response.custom_tool_call_input.delta"):
    output_index: int
    item_id: str
    delta: str


class InputDone(Event, tag="response.custom_tool_call_input.done"):
    output_index: int
    item_id: str
    input: str


AnyEvent = (
    Created
    | Queued
    | InProgress
    | Completed
    | Incomplete
    | Failed
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
    | InputDelta
    | InputDone
)
