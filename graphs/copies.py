"""State of a graph kept in memory as copies, so that graphs whose state no real checkpointer could store can be played too."""

import copy
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol


class CopySerializer(SerializerProtocol):
    """Keeps a deep copy of what a checkpointer is given, or the object itself if it cannot be copied, as LangGraph does between
    the steps of a run. For InMemorySaver alone."""

    def dumps_typed(self, obj: Any) -> tuple[str, Any]:
        return "copy", _copied(obj)

    def loads_typed(self, data: tuple[str, Any]) -> Any:
        return _copied(data[1])


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 (locks, connections and clients refuse in ways of their own)
        if isinstance(value, dict):
            return {key: _copied(item) for key, item in value.items()}
        return [_copied(item) for item in value] if isinstance(value, list) else value
