"""Plain data: frozen models, and any object as JSON data."""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_jsonable_python


class Frozen(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


DEPTH = 100
"""Levels of nested data that are kept as data; what lies deeper becomes text."""


def plain(value: Any, depth: int = DEPTH) -> Any:
    """The value as JSON data; what JSON has no form for becomes text. It never raises: what somebody's tool returned must not
    get lost because it could not be written down.

    >>> from decimal import Decimal
    >>> plain({"total": Decimal("12.50"), 3: float("nan"), "raw": b"ok"})
    {'total': '12.50', '3': 'nan', 'raw': 'ok'}
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _whole(str.__str__(value))
    if isinstance(value, int):
        return int(value) if value.bit_length() < 10_000 else hex(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _text(value)
    if depth == 0:
        return _text(value)
    if isinstance(value, dict):
        items = list(value.items())
        return {
            k if type(k) is str and k.isascii() else _key(k): plain(v, depth - 1) for k, v in items
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth - 1) for item in value]
    try:
        data = to_jsonable_python(value, fallback=_text)
    except Exception:  # noqa: BLE001 (whatever an object of somebody's app does when it is asked)
        data = _text(value)
    return plain(data, depth - 1)


def _key(key: Any) -> str:
    return _whole(key) if isinstance(key, str) else _text(key)


def _text(value: Any) -> str:
    try:
        return _whole(str(value))[:10_000]
    except Exception:  # noqa: BLE001 (an object that cannot be printed)
        return f"<{type(value).__name__}>"


def _whole(text: str) -> str:
    """Without half characters, which no file and no database takes."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()
