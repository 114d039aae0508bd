"""Rows of a store's tables (runs, calls, tool calls, feedback) and the statements that write them."""

import hashlib
import json
import uuid
import zlib

from stateset_agents.reward import Score
from stateset_agents.trace import Feedback, ModelCall, Trace
from stateset_agents.traces.codec import Coder, model_json
from stateset_agents.traces.tables import Row, Tables
from stateset_agents.traces.writer import Statement

COLUMNS = (
    "id", "thread", "graph", "phase", "step", "scenario", "intent", "customer", "status", "exactness", "version",
    "success", "reward", "started", "head", "score",
)  # fmt: skip
_AT_END = (
    "thread", "scenario", "intent", "customer", "status", "exactness", "version", "success", "reward", "head", "score"
)  # fmt: skip
RUN = f"INSERT INTO runs({', '.join(COLUMNS)}) VALUES({', '.join('?' * len(COLUMNS))})"
END = f"{RUN} ON CONFLICT(id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _AT_END)}"
"""If the beginning could not be stored, the end still is."""
CALL = "INSERT INTO calls VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
TOOL = "INSERT INTO tools VALUES(?, ?, ?)"
DISCARD = "UPDATE calls SET discarded = 1 WHERE run = ? AND number = ?"
GRADE = "UPDATE runs SET reward = ?, score = ? WHERE id = ?"
GONE = "DELETE FROM runs WHERE id = ?"
_FEEDBACK = "INSERT INTO feedback VALUES(?, ?, ?, ?, ?, ?)"

CODED = ("base", "shared", "prompt", "sampled", "logprobs", "about", "digest")
"""The columns of a call that `Coder` makes."""


def run_row(trace: Trace, phase: str, step: int, score: Score | None) -> Row:
    goal = trace.goal_score
    return (
        trace.id, trace.thread, trace.graph, phase, step,
        trace.scenario.id if trace.scenario else None,
        trace.scenario.intent if trace.scenario else None,
        trace.customer, trace.status, trace.exactness,
        trace.model_calls[-1].version if trace.model_calls else "",
        None if goal is None else int(goal.success),
        None if score is None else score.value,
        trace.started,
        zlib.compress(model_json(trace, exclude={"model_calls", "feedback"}, exclude_defaults=True), 1),
        None if score is None else json.dumps(score.model_dump(mode="json")),
    )  # fmt: skip


def feedback_row(run: str, feedback: Feedback) -> Statement:
    return _FEEDBACK, (
        uuid.uuid4().hex, run, feedback.key, feedback.value, feedback.comment, feedback.at,
    )  # fmt: skip


def call_row(run: str, number: int, coder: Coder, call: ModelCall) -> Statement:
    coded = coder.encode(call, number)
    return CALL, (
        run, number, call.response_id, call.version, coded.digest, int(call.discarded), coded.base,
        coded.shared, coded.prompt, coded.sampled, coded.logprobs, coded.about,
    )  # fmt: skip


def migrate(tables: Tables) -> None:
    """Traces of a store of version 1, which had one body each."""
    try:
        old = list(tables.read("SELECT phase, step, reward, score, body FROM traces_1"))
    except Exception as error:
        if "traces_1" not in str(error):
            raise
        return
    with tables.transaction():
        for phase, step, _, score, body in old:
            fields = json.loads(zlib.decompress(body))
            trace = Trace.model_validate(fields)
            parsed = None if score is None else Score.model_validate_json(score)
            coder = Coder()
            tables.write(RUN, [run_row(trace, phase, step, parsed)])
            for number, call in enumerate(trace.model_calls):
                sql, row = call_row(trace.id, number, coder, call)
                tables.write(sql, [row])
        tables.write("DROP TABLE traces_1", [()])


def is_forgotten(tables: Tables, trace: Trace) -> bool:
    """Whether a trace belongs to a customer who was erased after it began: it must not come back, for example by an import."""
    if not trace.customer:
        return False
    rows = tables.read("SELECT at FROM forgotten WHERE customer = ?", customer_hash(trace.customer))
    return any(trace.started < at for (at,) in rows)


def customer_hash(customer: str) -> str:
    return hashlib.sha256(customer.encode(errors="surrogatepass")).hexdigest()
