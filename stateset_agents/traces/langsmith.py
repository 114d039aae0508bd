"""LangSmith: import of runs as traces, and export of traces as runs, with feedback.

    stateset-agents traces langsmith import traces.db --project shop --days 7     # or --file export.jsonl | .parquet
    stateset-agents traces langsmith export traces.db --project shop

LangSmith stores messages and no token ids: imported traces are `text`.
"""

import datetime
import json
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from langsmith import Client

from stateset_agents.errors import BadInput
from stateset_agents.plain import plain
from stateset_agents.trace import Feedback, ModelCall, Status, ToolCall, Trace
from stateset_agents.traces.conversion import openai_message, output_of, sampling
from stateset_agents.traces.store import TraceStore

Run = Mapping[str, Any]
SELECTS: list[Any] = [
    "ID", "NAME", "RUN_TYPE", "STATUS", "START_TIME", "END_TIME", "ERROR", "EXTRA", "METADATA", "INPUTS", "OUTPUTS",
    "PARENT_RUN_IDS", "TRACE_ID", "THREAD_ID", "DOTTED_ORDER", "IS_ROOT", "FEEDBACK_STATS",
]  # fmt: skip


async def fetched(client: Client, project: str, *, since: datetime.datetime) -> AsyncIterator[Run]:
    """The runs of a project since a time. Raises BadInput for an unknown project."""
    from langsmith.utils import LangSmithError

    try:
        tracing_project = client.read_project(project_name=project)
    except LangSmithError as error:
        raise BadInput(
            f"--project: expected a project {project!r}, found: {str(error)[:200]}"
        ) from None
    query = client.runs.query(
        project_ids=[str(tracing_project.id)], min_start_time=since, selects=SELECTS, page_size=100
    )
    async for run in query:
        yield run.model_dump(mode="json")


def read(file: Path, problems: list[str]) -> Iterator[Run]:
    """The runs of an export, JSON lines or Parquet. A line that is no run is left out and named in `problems`. Raises BadInput for
    a file that cannot be read."""
    if file.suffix == ".parquet":
        from stateset_agents.traces.export import pyarrow

        arrow, parquet = pyarrow()
        try:
            with parquet.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=200):
                    yield from batch.to_pylist()
        except (OSError, arrow.ArrowException) as error:
            raise BadInput(f"Expected an export at {str(file)!r}, found: {error}") from None
        return
    try:
        with file.open(
            encoding="utf-8", newline="\n"
        ) as lines:  # other line ends may be inside a text
            for number, line in enumerate(lines, start=1):
                try:
                    run = json.loads(line)
                    if not isinstance(run, dict) or "id" not in run:
                        raise ValueError("no id")
                except (ValueError, RecursionError) as error:
                    problems.append(f"{file}, line {number}: expected a run, found: {error}")
                    continue
                yield run
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"Expected an export at {str(file)!r}, found: {error}") from None


def traces_of(runs: Iterable[Run]) -> Iterator[Trace]:
    """Runs as traces: a trace for each root, with its model and tool calls in order."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        plain = {name: _decoded(value) for name, value in run.items()}
        groups[str(plain.get("trace_id") or plain["id"])].append(plain)
    for trace_id, members in groups.items():
        members.sort(key=lambda run: str(run.get("dotted_order") or run.get("start_time") or ""))
        # A root that is not among them, as yet: what is there of its trace is kept under its id.
        unfinished = {"id": trace_id, "start_time": members[0].get("start_time")}
        root = next((run for run in members if str(run["id"]) == trace_id), unfinished)
        try:
            yield _trace(root, members)
        except Exception as error:  # noqa: BLE001 (one odd run must not cost all others)
            reason = f"{type(error).__name__}: {error}"[:300]
            yield Trace(
                id=_id(trace_id), status="interrupted", lost=len(members), error=f"cannot be read: {reason}"
            )  # fmt: skip


Part = TypeVar("Part")


def _readable(
    make: Callable[[dict[str, Any]], Part], runs: Iterable[dict[str, Any]], problems: list[str]
) -> tuple[Part, ...]:
    """The parts that can be read; the others are named in `problems`."""
    parts = []
    for run in runs:
        try:
            parts.append(make(run))
        except Exception as error:  # noqa: BLE001 (a run of a form that nobody foresaw)
            problems.append(
                f"run {run.get('id')} cannot be read: {type(error).__name__}: {error}"[:300]
            )
    return tuple(parts)


def _id(text: str) -> str:
    """A trace's id of a run's, which is a UUID but for exports by hand."""
    try:
        return uuid.UUID(text).hex
    except ValueError:
        return uuid.uuid5(uuid.NAMESPACE_OID, text).hex


def _trace(root: dict[str, Any], members: list[dict[str, Any]]) -> Trace:
    about = _metadata(root)
    outputs = root.get("outputs") or {}
    messages = outputs.get("messages") if isinstance(outputs, dict) else None
    messages = messages if isinstance(messages, list) else None
    problems: list[str] = []
    calls = _readable(_call, _of(members, "llm"), problems)
    tools = _readable(_tool, _of(members, "tool", "retriever"), problems)
    if not messages and calls:
        last = calls[-1]
        messages = [*last.messages, *([last.answer] if last.answer else [])]
    status: Status = (
        "failed" if root.get("error") else "completed" if root.get("end_time") else "interrupted"
    )
    started, ended = _seconds(root.get("start_time")), _seconds(root.get("end_time"))
    return Trace(
        id=_id(str(root["id"])),
        thread=str(root.get("thread_id") or about.get("thread_id") or ""),
        customer=str(about.get("customer") or about.get("user_id") or ""),
        graph=str(root.get("name") or ""),
        status=status,
        error=_words(root.get("error")) or (problems[0] if problems else None),
        messages=tuple(openai_message(message) for message in messages or []),
        model_calls=calls,
        tool_calls=tools,
        lost=len(problems),
        output=output_of({k: v for k, v in outputs.items() if k != "messages"})
        if isinstance(outputs, dict)
        else output_of(outputs),
        feedback=tuple(_feedback(root.get("feedback_stats") or {})),
        started=started,
        seconds=max(0.0, ended - started) if ended else 0.0,
    )


def _of(members: Iterable[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [run for run in members if str(run.get("run_type")).lower() in kinds]


def _words(error: Any) -> str | None:
    return None if error is None else error if isinstance(error, str) else json.dumps(plain(error))


def _call(run: dict[str, Any]) -> ModelCall:
    about, inputs = _metadata(run), run.get("inputs") or {}
    parameters = (run.get("extra") or {}).get("invocation_params") or {}
    sent = inputs.get("messages") or []
    if sent and isinstance(sent[0], list):  # LangChain sends batches
        sent = sent[0]
    started, ended = _seconds(run.get("start_time")), _seconds(run.get("end_time"))
    messages = tuple(openai_message(message) for message in sent)
    return ModelCall(
        response_id=str(about.get("response_id") or run["id"]),
        node=str(about.get("langgraph_node") or ""),
        namespace=str(about.get("langgraph_checkpoint_ns") or ""),
        version=str(about.get("ls_model_name") or parameters.get("model") or ""),
        messages=messages,
        turn=sum(message["role"] == "user" for message in messages),
        tools=tuple(parameters.get("tools") or inputs.get("tools") or ()),
        answer=_answer(run.get("outputs") or {}),
        **sampling(parameters),
        seconds=max(0.0, ended - started) if ended else 0.0,
        error=_words(run.get("error")),
    )


def _tool(run: dict[str, Any]) -> ToolCall:
    inputs, outputs = run.get("inputs") or {}, run.get("outputs") or {}
    result = outputs.get("output", outputs) if isinstance(outputs, dict) else outputs
    if isinstance(result, dict) and "content" in result:
        result = result["content"]
    return ToolCall(
        id=str(_metadata(run).get("tool_call_id") or run["id"]),
        name=str(run.get("name") or ""),
        arguments=inputs if isinstance(inputs, dict) else {"input": inputs},
        status="failed" if run.get("error") else "done",
        result=_words(run.get("error")) or (result if isinstance(result, dict) else str(result)),
    )


def _answer(outputs: dict[str, Any]) -> dict[str, Any] | None:
    """An answer in LangChain's form, in OpenAI's, or as a plain message."""
    generations, choices = outputs.get("generations"), outputs.get("choices")
    if generations:
        first = generations[0][0] if isinstance(generations[0], list) else generations[0]
        return openai_message(
            first.get("message") or {"role": "assistant", "content": first.get("text", "")}
        )
    if choices:
        return openai_message(choices[0]["message"])
    if outputs.get("messages"):
        return openai_message(outputs["messages"][-1])
    return openai_message(outputs) if "content" in outputs else None


def _metadata(run: dict[str, Any]) -> dict[str, Any]:
    return {**((run.get("extra") or {}).get("metadata") or {}), **(run.get("metadata") or {})}


def _feedback(stats: dict[str, Any]) -> Iterator[Feedback]:
    for key, stat in stats.items():
        mean = stat.get("avg") if isinstance(stat, dict) else stat
        if isinstance(mean, int | float):
            yield Feedback(key=key, value=float(mean))


def _decoded(value: Any) -> Any:
    """A field that a Parquet export has as JSON text."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _seconds(value: Any) -> float:
    if not value:
        return 0.0
    when = (
        value
        if isinstance(value, datetime.datetime)
        else datetime.datetime.fromisoformat(str(value))
    )
    return when.replace(tzinfo=when.tzinfo or datetime.UTC).timestamp()


def store_all(store: TraceStore, imported: Iterable[Trace]) -> tuple[int, int]:
    """Put traces into a store. Returns how many were new, and how many were left out: already there, or of erased customers. A
    trace that was incomplete at its first import is replaced."""
    there = {str(row[0]): row[1] for row in store.read("SELECT id, status FROM runs")}
    pending = []
    known = 0
    for trace in imported:
        grown = there.get(trace.id) == "interrupted" != trace.status
        if (trace.id in there and not grown) or store.is_forgotten(trace):
            known += 1
            continue
        pending.append(store.append(trace, phase="langsmith", replace=grown))
    for written in pending:
        written.result()
    return len(pending), known


def upload(store: TraceStore, client: Client, project: str, *, phase: str | None = None) -> int:
    """Send a store's traces to a project as runs, with scores, policy versions and feedback. Returns their number."""
    count = 0
    there = client.create_project(project, upsert=True).id
    for trace_phase, step, score, trace in store.graded(phase=phase):
        started = datetime.datetime.fromtimestamp(trace.started, datetime.UTC)
        root = _uploaded(client, project, trace, {"phase": trace_phase, "step": step})
        feedback = [] if score is None else [("reward", json.loads(score)["value"], "")]
        if trace.goal_score is not None:
            feedback.append(("success", float(trace.goal_score.success), ""))
        feedback += [(item.key, item.value, item.comment) for item in trace.feedback]
        for key, value, comment in feedback:
            client.create_feedback(
                root, key, score=value, comment=comment or None, trace_id=root, session_id=there, start_time=started
            )  # fmt: skip
        count += 1
    client.flush()
    return count


def _uploaded(client: Client, project: str, trace: Trace, about: dict[str, Any]) -> uuid.UUID:
    root = _uuid(trace.id)
    started = datetime.datetime.fromtimestamp(trace.started, datetime.UTC)
    order = f"{started:%Y%m%dT%H%M%S%fZ}{root}"
    first = [m for m in trace.messages if m["role"] == "user"][:1]
    client.create_run(
        trace.graph or "run", {"messages": first}, "chain", id=root, trace_id=root, dotted_order=order,
        project_name=project, start_time=started, end_time=started + datetime.timedelta(seconds=trace.seconds),
        outputs={"messages": list(trace.messages), "status": trace.status}, error=trace.error,
        extra={"metadata": {
            **about, "thread_id": trace.thread, "exactness": trace.exactness, "status": trace.status,
            "policy_versions": sorted({call.version for call in trace.calls if call.version}),
            "scenario": trace.scenario.id if trace.scenario else None,
        }},
    )  # fmt: skip
    at = started
    for number, call in enumerate(trace.model_calls):
        mine = _uuid(f"{trace.id}/{number}")
        later = at + datetime.timedelta(seconds=call.seconds)
        client.create_run(
            call.node or "model", {"messages": list(call.messages)}, "llm", id=mine, trace_id=root,
            parent_run_id=root, dotted_order=f"{order}.{at:%Y%m%dT%H%M%S%fZ}{mine}", project_name=project, start_time=at,
            end_time=later, outputs={"choices": [{"message": call.answer}]} if call.answer else {}, error=call.error,
            extra={
                "invocation_params": {"model": call.version, "temperature": call.temperature, **call.sampling, "tools": list(call.tools)},
                "metadata": {
                    "langgraph_node": call.node, "langgraph_checkpoint_ns": call.namespace, "attempt": call.attempt,
                    "discarded": call.discarded, "ls_model_name": call.version, "exactness": call.exactness,
                    "response_id": call.response_id, "thread_id": trace.thread,
                },
            },
        )  # fmt: skip
        at = later
    for number, used in enumerate(trace.tool_calls):
        mine = _uuid(f"{trace.id}/tool/{number}")
        client.create_run(
            used.name, used.arguments, "tool", id=mine, trace_id=root, parent_run_id=root,
            dotted_order=f"{order}.{at:%Y%m%dT%H%M%S%fZ}{mine}", project_name=project, start_time=at, end_time=at,
            outputs={"output": used.result}, error=None if used.status == "done" else f"{used.status}: {used.rule or ''}",
            extra={"metadata": {"tool_call_id": used.id, "status": used.status, "rule": used.rule}},
        )  # fmt: skip
    return root


def _uuid(name: str) -> uuid.UUID:
    """The trace's id as a UUID, or a UUID made from it."""
    try:
        return uuid.UUID(name)
    except ValueError:
        return uuid.uuid5(uuid.NAMESPACE_OID, name)
