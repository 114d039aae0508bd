"""Bodies of requests, in OpenAI's forms. What is not in them is refused by its name, never ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

MAX_TEXT = 400_000
"""Characters of one text; longer ones are no message of a person."""


Text = Annotated[StrictStr, Field(max_length=MAX_TEXT)]
Name = Annotated[StrictStr, Field(min_length=1, max_length=256)]
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Tokens = Annotated[int, Field(ge=1, le=10**9, strict=True)]


class Body(BaseModel):
    """A part of a request: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Body):
    type: Literal["text", "input_text", "output_text"]
    text: Text
    annotations: list[Any] | None = None


class RefusalPart(Body):
    type: Literal["refusal"]
    refusal: Text


Part = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class CalledFunction(Body):
    name: Name
    arguments: Text
    """As JSON text."""


class Call(Body):
    id: Name
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(max_length=1000)] | None = None
    name: Text | None = None
    tool_calls: Annotated[list[Call], Field(max_length=128)] | None = None
    tool_call_id: Text | None = None
    refusal: Text | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None

    @property
    def text(self) -> str:
        """Its words."""
        if isinstance(self.content, list):
            return "".join(getattr(p, "text", getattr(p, "refusal", "")) for p in self.content)
        return self.content or ""


class Function(Body):
    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class ToolSchema(Body):
    type: Literal["function"]
    function: Function


class StreamOptions(Body):
    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None
    continuous_usage_stats: Literal[False] | None = None


Messages = Annotated[list[Message], Field(min_length=1, max_length=2000)]
Stop = (
    Annotated[StrictStr, Field(min_length=1, max_length=256)]
    | Annotated[
        list[Annotated[StrictStr, Field(min_length=1, max_length=256)]], Field(max_length=16)
    ]
)


class Envelope(Body):
    """Fields that say nothing about the answer's words."""

    model: Name | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    user: Text | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: Text | None = None
    safety_identifier: Text | None = None
    request_id: Text | None = None
    priority: Literal[0] | None = None


class Sampled(Envelope):
    """How an engine samples. Neutral values of what it does not do are taken; others are refused."""

    max_tokens: Tokens | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=10**6, strict=True)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)] | None = None
    stop: Stop | None = None
    ignore_eos: StrictBool | None = None
    return_token_ids: StrictBool | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    repetition_penalty: Literal[1] | None = None
    min_p: Literal[0] | None = None
    min_tokens: Literal[0] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    skip_special_tokens: Literal[True] | None = None


class KvTransfer(Body):
    prompt_token_ids: Annotated[list[int], Field(min_length=1, max_length=10**6)]


class PlainText(Body):
    type: Literal["text"]


class EngineChat(Sampled):
    """A chat completion of the embedded engine. It samples freely: an answer's form cannot be forced."""

    messages: Messages
    tools: Annotated[list[ToolSchema], Field(max_length=256)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    response_format: PlainText | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    kv_transfer_params: KvTransfer | None = None
    parallel_tool_calls: Literal[True] | None = None
    """One call at most would have to be forced, or cut off what was sampled."""


class EngineCompletion(Sampled):
    """A completion of text or token ids."""

    prompt: Text | Annotated[list[int], Field(min_length=1, max_length=10**6)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | StrictBool | None = None
    echo: Literal[False] | None = None


class EndpointChat(Envelope):
    """A chat with a served graph. Its tools, rules and the form of its answers are the graph's own."""

    model: Name
    messages: Messages
    tools: Annotated[list[ToolSchema], Field(max_length=0)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    response_format: PlainText | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    stop: Annotated[list[Any], Field(max_length=0)] | None = None
    parallel_tool_calls: StrictBool | None = None
    """Either way one confirmation is asked at a time."""

    @property
    def sampling(self) -> dict[str, Any]:
        """How the policy samples in this turn, as fields of a chat model."""
        fields = {
            "temperature": self.temperature, "top_p": self.top_p, "seed": self.seed,
            "max_tokens": self.max_completion_tokens or self.max_tokens,
        }  # fmt: skip
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def instructions(self) -> str:
        """What the client's system and developer messages say."""
        texts = [m.text for m in self.messages if m.role in ("system", "developer")]
        return "\n".join(text for text in texts if text)


class Tokenize(Body):
    model: Name | None = None
    messages: Messages
    tools: Annotated[list[ToolSchema], Field(max_length=256)] | None = None
    add_generation_prompt: Literal[True] | None = None


class LoadAdapter(Body):
    lora_name: Name
    lora_path: Name
    load_inplace: Literal[False] | None = None


class UnloadAdapter(Body):
    lora_name: Name
    lora_int_id: int | None = None


def plain_body(body: BaseModel) -> dict[str, Any]:
    """The fields that a client set, as plain data."""
    return body.model_dump(exclude_unset=True)
