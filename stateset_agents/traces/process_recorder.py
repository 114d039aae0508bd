"""Every run of a process is recorded if `STATESET_RECORD` is set."""

import os
from contextvars import ContextVar
from typing import Any, ClassVar, Self

from langchain_core.tracers.context import register_configure_hook

from stateset_agents.traces.recorder import Recorder
from stateset_agents.traces.redaction import Redacted, Redactor
from stateset_agents.traces.store import TraceStore

VARIABLE = "STATESET_RECORD"
_never: ContextVar[Any] = ContextVar("stateset_agents_recorder", default=None)


class ProcessRecorder(Recorder):
    """Every LangChain run of a process. LangChain makes one for each run; all share the same state."""

    _instance: ClassVar[Any] = None

    def __new__(cls) -> Self:
        if cls._instance is None:
            place = os.environ[VARIABLE]
            store = TraceStore("traces.db" if place in ("1", "true") else place)
            cls._instance = super().__new__(cls)
            Recorder.__init__(cls._instance, Redacted(store, Redactor()))
        recorder: Self = cls._instance
        return recorder

    def __init__(self) -> None: ...


def record_process() -> None:
    """Record every run of this process if `STATESET_RECORD` is set: into the store that it names (a file or `postgresql://…`),
    or into traces.db if it is 1. `import stateset_agents` does it."""
    register_configure_hook(
        _never, inheritable=True, handle_class=ProcessRecorder, env_var=VARIABLE
    )
