"""A trace is the record of one graph run: messages, tool calls and sampled tokens, in order.

call 1   prompt P1           sampled C1    node "policy"
call 2   prompt P1 C1 T1     sampled C2    node "policy"      T1: a tool's answer
tool     issue_refund(...)   done
status   completed; changes: payments R1 amount 4550, ...
"""

import uuid
from array import array
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stateset_agents.plain import Frozen
from stateset_agents.scenario import Change, GoalScore, Scenario

Exactness = Literal["exact", "rendered", "text"]
Status = Literal["completed", "truncated", "failed", "waiting", "interrupted"]
"""`waiting`: for the answer to an interrupt. `interrupted`: the record has no end, because the process died, the run is still under
way, or who listened to its stream left in the middle."""


def words(message: dict[str, Any]) -> str:
    """The text of a message, or of its text blocks."""
    content = message.get("content")
    if isinstance(content, list):
        texts = (part if isinstance(part, str) else part.get("text") for part in content if part)
        return "\n".join(str(text) for text in texts if text)
    return str(content or "")


class Sampling(Frozen):
    """How a run samples: policy version, temperature and seed."""

    version: str = ""
    """The requested version; every model call records the one that answered."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    seed: int = 0
    max_tokens: int = Field(default=160, ge=1)
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions by node, or by agent below an orchestrator; other nodes use `version`."""


def agent_of(namespace: str) -> str:
    """The agent below an orchestrator, by its node there; '' for a single agent."""
    above, inside, _ = namespace.partition("|")
    return above.partition(":")[0] if inside else ""


class Forked(Frozen):
    """The origin of a fork, which continues from another run's checkpoint on a clone of its shop."""

    trace: str
    """Id of that run's trace."""
    calls: int
    """Number of model calls that come from that run; the fork's own calls follow."""


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,), "top_k": (0, -1), "min_p": (0,), "typical_p": (1,), "presence_penalty": (0,), "frequency_penalty": (0,),
    "repetition_penalty": (1,), "length_penalty": (1,), "logit_bias": ({},), "min_tokens": (0,), "best_of": (1,),
    "response_format": ({"type": "text"},), "tool_choice": ("auto", "none"), "bad_words": ([],), "ignore_eos": (False,),
    "stop_token_ids": ([],), "use_beam_search": (False,), "strict": (False,),
}  # fmt: skip
"""Values of sampling parameters that change nothing."""


class ModelCall(Frozen):
    """One request to the policy, with its sampled tokens."""

    response_id: str
    node: str = ""
    """Name of the LangGraph node that called."""
    namespace: str = ""
    """LangGraph's checkpoint namespace, which tells parallel branches apart."""
    attempt: int = 1
    """The attempt of the node, counted from 1; more than 1 after a retry."""
    turn: int = 0
    """The number of the customer's message that it answers, counted from 1; 0 where it is not known."""
    discarded: bool = False
    """It belongs to an attempt that failed: its result was not used."""
    messages: tuple[dict[str, Any], ...] = ()
    """The request's messages, in OpenAI's form; not kept for episodes, whose tokens are kept."""
    tools: tuple[dict[str, Any], ...] = ()
    """The request's tools, in OpenAI's form; not kept for episodes."""
    offered: int = 0
    """The number of the request's tools."""
    answer: dict[str, Any] | None = None
    """The answer, as an OpenAI message."""
    version: str = ""
    """The policy version that sampled, as the engine reports it."""
    prompt_ids: tuple[int, ...] = ()
    sampled_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Log-probability of each sampled token under the distribution it was drawn from."""
    finish_reason: str = ""
    temperature: float | None = 1.0
    """None if the request named none: then the server's default applies, which is not known here."""
    sampling: dict[str, Any] = Field(default_factory=dict)
    """Further sampling parameters of the request, such as `top_p`."""
    seconds: float = 0.0
    tries: int = 1
    """How often it was sent; more than once if a server was unreachable. The tokens are those of the answer that arrived."""
    error: str | None = None
    sealed: str = ""
    """Its tokens, encrypted, if they contain redacted data."""

    @field_validator("logprobs")
    @classmethod
    def _single(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        """Rounded to float32, as engines compute: stored and read back they are equal."""
        return tuple(array("f", values))

    @model_validator(mode="after")
    def _aligned(self) -> "ModelCall":
        if self.logprobs and len(self.logprobs) != len(self.sampled_ids):
            raise ValueError(
                f"Expected one log-probability per sampled token, got {len(self.logprobs)} for "
                f"{len(self.sampled_ids)} in {self.response_id!r}."
            )
        return self

    @property
    def constraint(self) -> str:
        """The parameter by which its tokens were drawn from another distribution than softmax(logits / temperature), such as
        `top_p` or a forced `tool_choice`; '' if there is none. Such tokens are not trained on."""
        for name, value in self.sampling.items():
            if value not in _NEUTRAL.get(name, ()):
                return name
        return ""

    @property
    def exactness(self) -> Exactness:
        return "exact" if self.prompt_ids and self.sampled_ids and self.logprobs else "text"


class ToolCall(Frozen):
    """One attempt to use a tool, allowed or not."""

    id: str
    name: str
    arguments: dict[str, Any]
    status: Literal["done", "denied", "invalid", "declined", "failed"]
    result: dict[str, Any] | str
    content: str | list[Any] | None = None
    """The answer as the model read it, if that is not the result as JSON: other spacing, other escapes, content blocks."""
    artifact: Any = None
    """What the tool gave the app beside its answer."""
    rule: str | None = None
    """The rule that denied it."""
    facts: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The facts of the executor's decision, so that rules can be checked again on the trace."""


class Feedback(Frozen):
    """Feedback on a run: from a customer, a colleague, or your own metric."""

    key: str
    """Such as `thumbs`, `csat`, `resolved`."""
    value: float = Field(allow_inf_nan=False)
    comment: str = ""
    at: float = 0.0
    """Unix time."""


class Trace(Frozen):
    """One run on one thread. Data, never judged here: a failed run is kept as failed."""

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    thread: str = ""
    """LangGraph's thread, which later runs may continue."""
    customer: str = ""
    """The customer's id, so that the trace can be erased on request."""
    scenario: Scenario | None = None
    graph: str = ""
    status: Status = "completed"
    error: str | None = None
    sampling: Sampling = Sampling()
    input: Any = None
    """The input of a recorded run, as plain data: messages in OpenAI's form, a command as `{"resume": …}`, with `update` and `goto`
    beside it if it has them."""
    waits_for: tuple[dict[str, Any], ...] = ()
    """What a waiting run asked, in order: `id` and `value` of each interrupt."""
    messages: tuple[dict[str, Any], ...] = ()
    """The conversation as OpenAI messages, without the system prompt."""
    model_calls: tuple[ModelCall, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    changes: tuple[Change, ...] = ()
    """The run's changes in the shop."""
    books: dict[str, float] = Field(default_factory=dict)
    """The financial effect, in minor units and counts (`revenue`, `refunded`, …), for business objectives."""
    segment: dict[str, str] = Field(default_factory=dict)
    """The customer's groups: `locale`, `tier`, `persona`, or your own."""
    output: dict[str, Any] | None = None
    """The plain data in the final state of a custom graph."""
    feedback: tuple[Feedback, ...] = ()
    forked: Forked | None = None
    lost: int = 0
    """Number of calls that could not be stored or read; the rest of such a run is `text`."""
    started: float = 0.0
    seconds: float = 0.0

    @property
    def calls(self) -> tuple[ModelCall, ...]:
        """The model calls that counted: answered, and not of an attempt that failed."""
        return tuple(c for c in self.model_calls if c.error is None and not c.discarded)

    @property
    def exactness(self) -> Exactness:
        kinds = {call.exactness for call in self.calls}
        return "exact" if kinds == {"exact"} and not self.lost else "text"

    @property
    def agent_text(self) -> str:
        """All the agent's text to the customer."""
        return "\n".join(words(m) for m in self.messages if m.get("role") == "assistant")

    @property
    def request(self) -> str:
        """The request: the scenario's id, or else the customer's first message."""
        if self.scenario is not None:
            return self.scenario.id
        first = next((m.get("content") for m in self.messages if m.get("role") == "user"), "")
        return str(first)

    @property
    def turns(self) -> int:
        return sum(message.get("role") == "user" for message in self.messages)

    @property
    def violations(self) -> tuple[str, ...]:
        """Ids of the rules that stopped an attempt."""
        return tuple(call.rule for call in self.tool_calls if call.rule is not None)

    @property
    def offers_tools(self) -> bool:
        """Whether a call was given tools."""
        return any(call.offered or call.tools for call in self.calls)

    @property
    def tokens_sampled(self) -> int:
        """Tokens sampled by this run itself, without those of the run that it was forked from."""
        first = self.forked.calls if self.forked else 0
        return sum(len(call.sampled_ids) for call in self.model_calls[first:])

    @property
    def tokens_in_all(self) -> int:
        """Tokens sampled in the whole run, including those of the run it was forked from; rewards for length use it."""
        return sum(len(call.sampled_ids) for call in self.model_calls)

    @property
    def goal_score(self) -> GoalScore | None:
        """The comparison with the scenario's goal; None without a goal."""
        if self.scenario is None or self.scenario.goal is None:
            return None
        return self.scenario.goal.score(
            self.changes,
            self.agent_text,
            (call.name for call in self.tool_calls),
            done=(call.name for call in self.tool_calls if call.status == "done"),
            denied=self.violations,
            finished=self.status == "completed",
        )
