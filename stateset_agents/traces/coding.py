"""What a model call adds to an earlier one: storage grows with the conversation, not with its square.

call 0   prompt P1           sampled C1     stored: P1, C1
call 1   prompt P1 C1 T1     sampled C2     stored: base 0, shared |P1 C1|, then T1, C2
"""

import hashlib
import json
import struct
import sys
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stateset_agents.trace import Exactness, ModelCall

LOOKS_BACK = 8
"""Earlier calls that may be continued, beside the last one of the same node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A call as it is stored."""

    base: int
    """Number of the call that it continues, -1 for none."""
    shared: int
    """How many tokens of the base's prompt and answer it begins with."""
    prompt: bytes
    """The rest of the prompt, as are `sampled`: int32, little-endian."""
    sampled: bytes
    logprobs: bytes
    """float32, little-endian."""
    about: bytes
    """All else, as compressed JSON; messages as what they add to those of the base."""


class Coder:
    """Codes the calls of one run, in order."""

    def __init__(self) -> None:
        self._full: list[tuple[int, ...]] = []
        self._said: list[tuple[dict[str, Any], ...]] = []
        self._tools: dict[str, tuple[dict[str, Any], ...]] = {}
        self._by_node: dict[str, int] = {}

        self.tools = 0
        """Tool calls of the run so far."""
        self.version = ""
        self._exact: set[bool] = set()

    def __len__(self) -> int:
        return len(self._full)

    @property
    def exactness(self) -> Exactness | None:
        """Of the calls so far that were answered, None where there are none."""
        return None if not self._exact else "exact" if self._exact == {True} else "text"

    def encode(self, call: ModelCall) -> Coded:
        base, shared = self._base(call)
        kept = _common(self._said[base], call.messages) if base >= 0 else 0
        fields = call.model_dump(
            mode="json", exclude_defaults=True,
            exclude={"prompt_ids", "sampled_ids", "logprobs", "messages", "tools"},
        )  # fmt: skip
        fields["messages"] = [kept, list(call.messages[kept:])]
        if call.tools != self._tools.get(call.node, ()):
            fields["tools"] = list(call.tools)
            self._tools[call.node] = call.tools
        self._remember(call)
        return Coded(
            base=base,
            shared=shared,
            prompt=_ints(call.prompt_ids[shared:]),
            sampled=_ints(call.sampled_ids),
            logprobs=_bytes(array("f", call.logprobs)),
            about=zlib.compress(json.dumps(fields, ensure_ascii=False).encode(), 1),
        )

    def decode(self, coded: Coded) -> ModelCall:
        """The call again. Raises ValueError where it does not follow from the calls before it."""
        if coded.base >= len(self._full) or coded.shared > (
            len(self._full[coded.base]) if coded.base >= 0 else 0
        ):
            raise ValueError(f"call {len(self._full)} continues a call that is not there")
        fields = json.loads(zlib.decompress(coded.about))
        kept, new = fields.pop("messages")
        node = fields.get("node", "")
        if "tools" in fields:
            self._tools[node] = tuple(fields.pop("tools"))
        call = ModelCall(
            **fields,
            messages=(*(self._said[coded.base][:kept] if coded.base >= 0 else ()), *new),
            tools=self._tools.get(node, ()),
            prompt_ids=(
                *(self._full[coded.base][: coded.shared] if coded.base >= 0 else ()),
                *_unpacked("i", coded.prompt),
            ),
            sampled_ids=tuple(_unpacked("i", coded.sampled)),
            logprobs=tuple(_unpacked("f", coded.logprobs)),
        )
        self._remember(call)
        return call

    def _base(self, call: ModelCall) -> tuple[int, int]:
        """The earlier call that this one continues the longest, and by how many tokens (or, where there are none,
        messages: then it shares no tokens)."""
        earlier: Sequence[tuple[Any, ...]] = self._full if call.prompt_ids else self._said
        wanted: tuple[Any, ...] = call.prompt_ids or call.messages
        newest = range(len(earlier) - 1, max(-1, len(earlier) - 1 - LOOKS_BACK), -1)
        tried = [self._by_node[call.node]] if call.node in self._by_node else []
        best = (-1, 0)
        for number in dict.fromkeys([*tried, *newest]):
            shared = _common(earlier[number], wanted)
            if shared > best[1]:
                best = (number, shared)
            if 0 < shared == len(earlier[number]):
                break  # the whole of it: a conversation that goes on
        return best if call.prompt_ids else (best[0], 0)

    def _remember(self, call: ModelCall) -> None:
        self._by_node[call.node] = len(self._full)
        self.version = call.version or self.version
        if call.error is None:
            self._exact.add(call.exactness == "exact")
        self._full.append((*call.prompt_ids, *call.sampled_ids))
        self._said.append((*call.messages, *((call.answer,) if call.answer else ())))


def digest(call: ModelCall) -> str:
    """What stands for a call's tokens in a certificate: SHA-256 of its ids and log-probabilities."""
    counts = struct.pack("<II", len(call.prompt_ids), len(call.sampled_ids))
    parts = (
        counts,
        _ints(call.prompt_ids),
        _ints(call.sampled_ids),
        _bytes(array("f", call.logprobs)),
    )
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _common(one: tuple[Any, ...], other: tuple[Any, ...]) -> int:
    """How many items two sequences begin with in common; whole slices are compared, in C."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _ints(values: Sequence[int]) -> bytes:
    return _bytes(array("i", values))


def _bytes(values: "array[int] | array[float]") -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _unpacked(kind: str, data: bytes) -> Any:
    values = array(kind)
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values
