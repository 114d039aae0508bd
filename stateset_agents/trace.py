"""A trace is the record of one graph run: what was asked, said, called and sampled, in order.

call 1   prompt P1           sampled C1    node "policy"
call 2   prompt P1 C1 T1     sampled C2    node "policy"      T1: a tool's answer
tool     issue_refund(...)   done
status   completed; changes: payments R1 amount 4550, ...
"""

import uuid
from array import array
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stateset_agents.frozen import Frozen
from stateset_agents.scenario import Change, GoalScore, Scenario

Exactness = Literal["exact", "rendered", "text"]
Status = Literal["completed", "truncated", "failed", "waiting", "interrupted"]
"""`waiting` for the answer to an interrupt; `interrupted` where the record has no end: the process died, or the run
is still under way."""


def words(message: dict[str, Any]) -> str:
    """What a message says; of blocks, the texts."""
    content = message.get("content")
    if isinstance(content, list):
        texts = (part if isinstance(part, str) else part.get("text") for part in content if part)
        return "\n".join(str(text) for text in texts if text)
    return str(content or "")


class Sampling(Frozen):
    """How a run samples: which policy version, how hot, and from which seed."""

    version: str = ""
    """Model name to ask the engine for; every model call records the one that answered."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    seed: int = 0
    max_tokens: int = Field(default=160, ge=1)
    versions: dict[str, str] = Field(default_factory=dict)
    """Model names to ask for at nodes, or agents below an orchestrator, that have one of their own."""


def agent_of(namespace: str) -> str:
    """The agent below an orchestrator, by its node there; '' where there is one agent alone."""
    above, inside, _ = namespace.partition("|")
    return above.partition(":")[0] if inside else ""


class Forked(Frozen):
    """Where a run was forked from: it goes on from another's checkpoint, on a clone of its shop."""

    trace: str
    """Id of the other."""
    calls: int
    """Its first model calls, which the other made; what it sampled itself comes after them."""


class ModelCall(Frozen):
    """One request to the policy and what it sampled."""

    response_id: str
    node: str = ""
    """Name of the LangGraph node that called."""
    namespace: str = ""
    """LangGraph's checkpoint namespace, which tells parallel branches apart."""
    attempt: int = 1
    """Which attempt of the node it was, where the node was tried again."""
    turn: int = 0
    """The number of the customer's message that it answers, counted from 1; 0 where it is not known."""
    discarded: bool = False
    """Of an attempt that failed: what came of it went nowhere."""
    messages: tuple[dict[str, Any], ...] = ()
    """What the model was sent, as OpenAI messages; not kept of episodes, whose tokens say the same."""
    tools: tuple[dict[str, Any], ...] = ()
    """What the model was offered, as OpenAI tools."""
    answer: dict[str, Any] | None = None
    """What it answered, as an OpenAI message."""
    version: str = ""
    """Policy version that the engine says it sampled from."""
    prompt_ids: tuple[int, ...] = ()
    sampled_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Log-probability of each sampled token under the distribution it was drawn from."""
    finish_reason: str = ""
    temperature: float | None = 1.0
    """None where the request named none: the server's own default, which nobody here knows."""
    sampling: dict[str, Any] = Field(default_factory=dict)
    """What else the request said of how to sample, such as `top_p`."""
    seconds: float = 0.0
    tries: int = 1
    """How often it was sent: more than once where a server was away. The tokens are those of the one answer that came."""
    error: str | None = None
    sealed: str = ""
    """Its tokens, encrypted, where they would tell what was redacted."""

    @field_validator("logprobs")
    @classmethod
    def _single(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        """Kept as float32, what engines compute in: stored and read back they are the same."""
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
    def exactness(self) -> Exactness:
        return "exact" if self.prompt_ids and self.sampled_ids and self.logprobs else "text"


class ToolCall(Frozen):
    """One attempt to use a tool, allowed or not."""

    id: str
    name: str
    arguments: dict[str, Any]
    status: Literal["done", "denied", "invalid", "declined", "failed"]
    result: dict[str, Any] | str
    rule: str | None = None
    """The rule that denied it."""
    facts: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What the executor knew when it decided, so that rules can be checked again on the trace."""


class Feedback(Frozen):
    """What somebody said of a run afterwards: a customer, a colleague, a metric of yours."""

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
    """LangGraph's thread, which later runs may go on with."""
    customer: str = ""
    """Whose conversation it is, so that it can be forgotten."""
    scenario: Scenario | None = None
    graph: str = ""
    status: Status = "completed"
    error: str | None = None
    sampling: Sampling = Sampling()
    input: Any = None
    """What a recorded run was started with, as plain data: messages as OpenAI's, a resume as `{"resume": …}`."""
    messages: tuple[dict[str, Any], ...] = ()
    """The conversation as OpenAI messages, without the system prompt."""
    model_calls: tuple[ModelCall, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    changes: tuple[Change, ...] = ()
    """What the run changed in the shop."""
    books: dict[str, float] = Field(default_factory=dict)
    """What that came to, in minor units and counts (`revenue`, `refunded`, …): business objectives read it."""
    segment: dict[str, str] = Field(default_factory=dict)
    """Whose conversation it was: `locale`, `tier`, `persona`, or groups of yours."""
    output: dict[str, Any] | None = None
    """The final state of a graph of one's own, where it is plain data."""
    feedback: tuple[Feedback, ...] = ()
    forked: Forked | None = None
    lost: int = 0
    """Calls that could not be stored, or not be read again; what is left of such a run is `text`."""
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
        """All the agent's words to the customer."""
        return "\n".join(words(m) for m in self.messages if m.get("role") == "assistant")

    @property
    def request(self) -> str:
        """What was asked for: the scenario's id, or else the first message of the customer."""
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
    def tokens_sampled(self) -> int:
        """By this run itself: not those of the run that it was forked from."""
        first = self.forked.calls if self.forked else 0
        return sum(len(call.sampled_ids) for call in self.model_calls[first:])

    @property
    def tokens_in_all(self) -> int:
        """Sampled in the whole run, those of the run it was forked from included: what a reward charges for."""
        return sum(len(call.sampled_ids) for call in self.model_calls)

    @property
    def goal_score(self) -> GoalScore | None:
        """What happened against the scenario's goal; None where there is no goal to compare with."""
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
