"""Codes a model call by what it adds to an earlier one, so that storage grows linearly with the conversation.

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

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from stateset_agents.prefix import common_prefix
from stateset_agents.trace import Exactness, ModelCall

LOOKS_BACK = 8
"""Number of recent calls that a call may continue, besides the last one of the same node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A stored call."""

    base: int
    """Number of the call that it continues, -1 for none."""
    shared: int
    """Number of tokens in common with the base's prompt and answer."""
    prompt: bytes
    """The rest of the prompt; like `sampled`, little-endian int32."""
    sampled: bytes
    logprobs: bytes
    """float32, little-endian."""
    about: bytes
    """The other fields, as compressed JSON; messages only as far as they differ from the base's."""
    digest: str


@dataclass(slots=True)
class _Known:
    """The data of a call that later ones may continue."""

    tokens: bytes = b""
    """Prompt and answer as int32."""
    messages: tuple[dict[str, Any], ...] = ()


class Coder:
    """Codes the calls of one run, in order."""

    def __init__(self) -> None:
        self._known: list[_Known] = []
        self._tools: dict[str, tuple[dict[str, Any], ...]] = {}
        self._by_node: dict[str, int] = {}
        self._exact: set[bool] = set()
        self.tools = 0
        """Tool calls of the run so far."""
        self.lost = 0
        """Records of the run that could not be stored."""
        self.version = ""

    @property
    def exactness(self) -> Exactness | None:
        """The exactness of the answered calls so far; None if there are none."""
        if not self._exact:
            return None
        return "exact" if self._exact == {True} and not self.lost else "text"

    def encode(self, call: ModelCall, number: int) -> Coded:
        """Code a call. Calls with earlier numbers that are missing are not continued."""
        self._skip(number)
        prompt, sampled = _ints(call.prompt_ids), _ints(call.sampled_ids)
        logprobs = _bytes(array("f", call.logprobs))
        base, shared = self._base(call, prompt)
        kept = common_prefix(self._known[base].messages, call.messages) if base >= 0 else 0
        fields = call.model_dump(exclude_defaults=True, exclude=_APART)
        fields["messages"] = [kept, call.messages[kept:]]
        if call.tools != self._tools.get(call.node, ()):
            fields["tools"] = call.tools
        about = zlib.compress(as_json(fields), 1)
        self._remember(call, prompt + sampled)  # last: a call that cannot be coded is not continued
        return Coded(
            base=base,
            shared=shared // WIDTH,
            prompt=prompt[shared:],
            sampled=sampled,
            logprobs=logprobs,
            about=about,
            digest=_hashed(prompt, sampled, logprobs),
        )

    def decode(self, coded: Coded, number: int) -> ModelCall:
        """Decode a call. Raises ValueError if it does not fit the calls before it."""
        self._skip(number)
        base = self._known[coded.base] if 0 <= coded.base < number else _Known()
        shared = base.tokens[: coded.shared * WIDTH]
        fields = json.loads(zlib.decompress(coded.about))
        kept, new = fields.pop("messages")
        if coded.base >= number or len(shared) < coded.shared * WIDTH or len(base.messages) < kept:
            raise ValueError(f"call {number} continues a call that is not there")
        if "tools" in fields:
            self._tools[fields.get("node", "")] = tuple(fields.pop("tools"))
        prompt = shared + coded.prompt
        call = ModelCall(
            **fields,
            messages=(*base.messages[:kept], *new),
            tools=self._tools.get(fields.get("node", ""), ()),
            prompt_ids=tuple(_unpacked("i", prompt)),
            sampled_ids=tuple(_unpacked("i", coded.sampled)),
            logprobs=tuple(_unpacked("f", coded.logprobs)),
        )
        self._remember(call, prompt + coded.sampled)
        return call

    def restart(self) -> None:
        """After a failed write: later calls do not continue earlier ones."""
        self.lost += 1
        self._known = [_Known() for _ in self._known]
        self._tools, self._by_node = {}, {}

    def _skip(self, number: int) -> None:
        while len(self._known) < number:
            self._known.append(_Known())

    def _base(self, call: ModelCall, prompt: bytes) -> tuple[int, int]:
        """The earlier call with the longest common prefix, and its length in bytes of tokens."""
        last = len(self._known) - 1
        tried = [self._by_node[call.node]] if call.node in self._by_node else []
        best, longest = -1, 0
        for number in dict.fromkeys([*tried, *range(last, max(-1, last - LOOKS_BACK), -1)]):
            known = self._known[number]
            whole: bytes | tuple[Any, ...] = known.tokens if prompt else known.messages
            shared = (
                common_prefix(known.tokens, prompt, unit=WIDTH)
                if prompt
                else common_prefix(known.messages, call.messages)
            )
            if shared > longest:
                best, longest = number, shared
            if 0 < shared == len(whole):
                break  # the whole of it: a conversation that goes on
        return best, longest if prompt else 0

    def _remember(self, call: ModelCall, tokens: bytes) -> None:
        self._by_node[call.node] = len(self._known)
        self._tools[call.node] = call.tools
        self.version = call.version or self.version
        if call.error is None:
            self._exact.add(call.exactness == "exact")
        messages = (*call.messages, *((call.answer,) if call.answer else ()))
        self._known.append(_Known(tokens, messages))


WIDTH = 4
_APART = {"prompt_ids", "sampled_ids", "logprobs", "messages", "tools"}


def as_json(value: Any) -> bytes:
    """JSON in UTF-8, escaped if a text is not valid Unicode: models do sample half a surrogate pair."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def model_json(model: BaseModel, **options: Any) -> bytes:
    """The same for a pydantic model."""
    try:
        return model.model_dump_json(**options).encode()
    except PydanticSerializationError:
        return as_json(model.model_dump(**options))


def digest(call: ModelCall) -> str:
    """The digest of a call's tokens in a certificate: SHA-256 of ids and log-probabilities."""
    logprobs = _bytes(array("f", call.logprobs))
    return _hashed(_ints(call.prompt_ids), _ints(call.sampled_ids), logprobs)


def _hashed(prompt: bytes, sampled: bytes, logprobs: bytes) -> str:
    counts = struct.pack("<II", len(prompt) // WIDTH, len(sampled) // WIDTH)
    return hashlib.sha256(b"".join((counts, prompt, sampled, logprobs))).hexdigest()


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
