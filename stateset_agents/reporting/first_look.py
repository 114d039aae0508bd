"""What a model can and cannot do with a graph, told from a few episodes: does it call tools, which, with what, and does it stop?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stateset_agents.trace import Trace, words

HALF = 0.5
CALL_LIKE = (
    "<tool_call",
    "[TOOL_CALLS]",
    '"arguments"',
    '"parameters"',
    "<function=",
    "<|python_tag|>",
)
"""Texts of a call that no reader took for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLook:
    """Counts over some episodes."""

    episodes: int
    answers: int
    """Answers of the model."""
    offered: int
    """Episodes in which it was given tools."""
    calling: int
    """Episodes in which it called one."""
    calls: int
    named: int
    """Calls of a tool that there is."""
    fitting: int
    """Those of them whose arguments the tool takes."""
    unread: int
    """Answers with the text of a call that could not be read."""
    cut: int
    """Answers that were cut off by the limit of tokens."""
    tokens: float
    """Sampled tokens an answer."""
    seconds: float
    """Seconds an answer, with as many at once as were played."""
    succeeded: int | None
    """Episodes that reached their goal; None without goals."""
    errors: Counter[str]


def first_look(traces: Sequence[Trace]) -> FirstLook:
    """Count."""
    answers = [call for trace in traces for call in trace.calls]
    calls = [call for trace in traces for call in trace.tool_calls]
    errors = [
        call.result.get("error", "") if isinstance(call.result, dict) else "" for call in calls
    ]
    unknown = sum(error == "no_such_tool" for error in errors)
    wrong = sum(error == "bad_arguments" for error in errors)
    texts = [
        words(m)
        for t in traces
        for m in t.messages
        if m.get("role") == "assistant" and not m.get("tool_calls")
    ]
    goals = [trace.goal_score for trace in traces]
    return FirstLook(
        episodes=len(traces),
        answers=len(answers),
        offered=sum(trace.offers_tools for trace in traces),
        calling=sum(bool(trace.tool_calls) for trace in traces),
        calls=len(calls),
        named=len(calls) - unknown,
        fitting=len(calls) - unknown - wrong,
        unread=sum(any(mark in text for mark in CALL_LIKE) for text in texts),
        cut=sum(call.finish_reason == "length" for call in answers),
        tokens=sum(len(call.sampled_ids) for call in answers) / max(1, len(answers)),
        seconds=sum(call.seconds for call in answers) / max(1, len(answers)),
        succeeded=None if None in goals else sum(bool(goal and goal.success) for goal in goals),
        errors=Counter(trace.error for trace in traces if trace.error and trace.status in ("failed", "waiting", "truncated")),
    )  # fmt: skip


def in_words(look: FirstLook) -> list[str]:
    """The findings, a line each, and what to do next."""
    lines = []
    if look.answers:
        lines.append(
            f"answers: {look.answers} in {look.episodes} episodes, {look.tokens:.0f} tokens and {look.seconds:.1f} s each"
        )
    for error, count in look.errors.most_common(2):
        lines.append(f"broken off: {count} of {look.episodes} episodes with: {error[:200]}")
    if look.offered:
        lines.append(f"calls tools: in {look.calling} of {look.offered} episodes that offer some")
    if look.calls:
        lines.append(f"right names: {look.named} of {look.calls} calls name a tool that there is")
        lines.append(
            f"right arguments: {look.fitting} of {max(1, look.named)} calls have arguments that their tool takes"
        )
    if look.unread:
        lines.append(f"unread calls: {look.unread} answers hold the text of a call that is none")
    if look.answers:
        lines.append(f"stops by itself: in {look.answers - look.cut} of {look.answers} answers")
    if look.succeeded is not None:
        lines.append(f"reaches the goal: in {look.succeeded} of {look.episodes} episodes")
    return [*lines, *(f"next: {step}" for step in _next(look))]


def _next(look: FirstLook) -> list[str]:
    """What to do, the most urgent first."""
    if not look.answers:
        return [
            "the model was never called: look at the errors above, and at whether the graph calls the model that it is given."
        ]
    steps = []
    if look.cut > HALF * look.answers:
        steps.append(
            "most answers are cut off: give more --max-tokens, or teach it to stop (a warm start; a base model is no chat model)."
        )
    if look.unread > HALF * max(1, look.calls):
        steps.append(
            "it writes calls that are not whole: more --max-tokens, another --tool-parser (vLLM), or a warm start on demonstrations."
        )
    if look.offered and look.calling <= HALF * look.offered:
        steps.append(
            "it rarely calls tools: GRPO has nothing to reward yet. Begin with demonstrations: `train --warm-start oracle`, or "
            "`--warm-start STORE` of your own; or take a model that was trained with tools."
        )
    elif look.calls and look.fitting <= HALF * look.calls:
        steps.append(
            "it calls tools and gets them wrong: a warm start on demonstrations, then GRPO."
        )
    if not steps and look.succeeded == 0:
        steps.append(
            "it calls tools and reaches no goal: GRPO needs some successes in a group; begin with a warm start."
        )
    if not steps and look.succeeded == look.episodes:
        steps.append(
            "it reaches every goal: take harder scenarios (`scenarios generate --complications 3`), or serve it."
        )
    if not steps:
        steps.append("it acts, and sometimes succeeds: train it with GRPO (`train --model …`).")
    return steps
