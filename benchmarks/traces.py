"""What recording and storing cost, measured in one run: `make bench`."""

import asyncio
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import START, MessagesState, StateGraph
from rich.console import Console
from rich.progress import track
from rich.table import Table

from stateset_agents.server.supervisor import free_port
from stateset_agents.trace import ModelCall, Trace
from stateset_agents.traces import writer
from stateset_agents.traces.record import record
from stateset_agents.traces.redaction import Redactor
from stateset_agents.traces.retention import SIZES
from stateset_agents.traces.store import TraceStore
from stateset_agents.trainers.packing.trie import fold
from stateset_agents.trajectory import trajectory

CALLS = 8
"""Model calls of a run of the recorded graph."""


class Quick(BaseChatModel):
    """Answers at once, so that what is measured is everything else."""

    @property
    def _llm_type(self) -> str:
        return "quick"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("It arrives on 3 May."))])

    async def _agenerate(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> ChatResult:
        return self._generate(messages)


def graph() -> Any:
    """A conversation of CALLS model calls."""
    model = Quick()

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    made = StateGraph(MessagesState)
    made.add_node("answer", answer)
    made.add_edge(START, "answer")
    made.add_conditional_edges(
        "answer", lambda s: "answer" if len(s["messages"]) < CALLS + 1 else "__end__"
    )
    return made.compile()


class Plain(AsyncCallbackHandler):
    """What a handler costs that does nothing."""

    async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None: ...

    async def on_llm_end(self, *args: Any, **kwargs: Any) -> None: ...

    async def on_chain_start(self, *args: Any, **kwargs: Any) -> None: ...

    async def on_chain_end(self, *args: Any, **kwargs: Any) -> None: ...


def per_call_ms(runnable: Any, runs: int = 60) -> float:
    """CPU of this thread alone for a model call, so that the writer's is not counted."""

    async def go() -> list[float]:
        taken = []
        for _ in range(runs):
            began = time.thread_time()
            await runnable.ainvoke({"messages": [HumanMessage("Where is my order?")]})
            taken.append(time.thread_time() - began)
        return taken

    return statistics.median(asyncio.run(go())) / CALLS * 1000


def recording(folder: Path) -> tuple[float, float, float]:
    """Bare, recorded and with a plain async handler, in turns; the least of nine rounds, which others disturb the least.

    The writer is made to wait until a round is over: what it takes is measured by `ingest`."""
    writer.GATHERS = 1.0
    made = graph()
    with TraceStore(folder / "recording.db") as store:
        kinds = (made, record(made, store), made.with_config(callbacks=[Plain()]))
        for kind in kinds:
            per_call_ms(kind, runs=5)
        rounds = []
        for _ in range(9):
            rounds.append([per_call_ms(kind, runs=30) for kind in kinds])
            store.flush()
    writer.GATHERS = 0.01
    bare, recorded, plain = (min(column) for column in zip(*rounds, strict=True))
    return bare, recorded, plain


def calls_of(
    count: int, prompt: int, sampled: int, seed: int, *, grows: int = 0
) -> tuple[ModelCall, ...]:
    """Calls with prompts of their own, or (where it grows) one conversation."""
    rng = random.Random(seed)
    made, before = list[ModelCall](), tuple(rng.randrange(50_000) for _ in range(prompt))
    for number in range(count):
        if not grows:
            before = tuple(rng.randrange(50_000) for _ in range(prompt))
        ids = tuple(rng.randrange(50_000) for _ in range(sampled))
        made.append(
            ModelCall(
                response_id=f"{seed}-{number}", node="policy", version="v0", prompt_ids=before, sampled_ids=ids,
                logprobs=tuple(-rng.random() for _ in ids),
            )
        )  # fmt: skip
        before = (*before, *ids, *(rng.randrange(50_000) for _ in range(grows)))
    return tuple(made)


def ingest(
    folder: Path, name: str, traces: Sequence[Trace], change: Callable[[Trace], Trace] | None = None
) -> float:
    """Model calls a second of wall clock, durable."""
    count = sum(len(trace.model_calls) for trace in traces)
    with TraceStore(folder / f"{name}.db") as store:
        began = time.perf_counter()
        for trace in traces:
            store.append(change(trace) if change else trace)
        store.flush()
        return count / (time.perf_counter() - began)


def talk(number: int) -> Trace:
    """A conversation with texts: what redaction has to read."""
    messages = [
        {"role": "user", "content": f"Where is order W{number}{n}? My zip is 12345, please look."}
        for n in range(8)
    ]
    calls = [
        call.model_copy(
            update={
                "messages": tuple(messages[: n + 1]),
                "answer": {"role": "assistant", "content": f"It is {n}."},
            }
        )
        for n, call in enumerate(calls_of(8, 1200, 60, number))
    ]
    return Trace(model_calls=tuple(calls), messages=tuple(messages))


def rows_per_second() -> float:
    """Traces to rows to a trie, groups of eight conversations of 12 calls."""
    groups = [
        [Trace(model_calls=calls_of(12, 700, 30, seed * 8 + n, grows=30)) for n in range(8)]
        for seed in range(6)
    ]
    taken = []
    for _ in range(5):
        began = time.process_time()
        for group in groups:
            fold([(*row.prompt, *row.sampled) for trace in group for row in trajectory(trace).rows])
        taken.append(time.process_time() - began)
    return 6 * 8 * 12 / min(taken)


def constant_memory(folder: Path, count: int) -> tuple[float, float]:
    """Peak megabytes of reading a filter's traces out of `count`, and of `count` / 10."""
    peaks = []
    for size in (count // 10, count):
        with TraceStore(folder / f"many{size}.db") as store:
            for number in track(range(size), f"{size:,} traces", transient=True):
                store.append(
                    Trace(graph="service", messages=({"role": "user", "content": f"question {number} " * 8},)),
                    phase="even" if number % 2 == 0 else "odd",
                )  # fmt: skip
            store.flush()
            tracemalloc.start()
            read = sum(len(trace.messages) for trace in store.traces(phase="even"))
            peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
            tracemalloc.stop()
            assert read == size // 2
    return peaks[1], peaks[0]


SERVER = """
import json, sys
from aiohttp import web

ids = list(range(1200))
entries = [{"token": "x", "logprob": -1.0, "bytes": None, "top_logprobs": []} for _ in range(60)]
choice = {"index": 0, "message": {"role": "assistant", "content": "It arrives on 3 May. " * 12}, "finish_reason": "stop",
          "logprobs": {"content": entries}, "token_ids": ids[:60]}
count = 0

async def chat(request):
    global count
    body, count = await request.json(), count + 1
    if not body.get("stream"):
        return web.json_response({"id": f"c{count}", "model": "m", "prompt_token_ids": ids, "choices": [choice]})
    out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await out.prepare(request)
    for n in range(60):
        piece = {"index": 0, "delta": {"content": "word "}, "finish_reason": "stop" if n == 59 else None,
                 "logprobs": {"content": entries[:1]}, "token_ids": ids[:1]}
        await out.write(f"data: {json.dumps({'id': f'c{count}', 'model': 'm', 'choices': [piece]})}\\n\\n".encode())
    return out

app = web.Application()
app.router.add_post("/v1/chat/completions", chat)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proxied(folder: Path) -> tuple[float, float]:
    """CPU milliseconds of the proxy's process a call, the writer included: not streamed, and streamed in 60 pieces."""
    upstream, port = free_port(), free_port()
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(upstream)])
    proxy = subprocess.Popen(
        [sys.executable, "-m", "stateset_agents", "traces", "proxy", "--to", f"http://127.0.0.1:{upstream}/v1", "--exact",
         "--port", str(port), "--traces", str(folder / "proxy.db")], stdout=subprocess.DEVNULL,
    )  # fmt: skip

    async def calls(count: int, **options: Any) -> float:
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "Where is it? " * 90}],
            **options,
        }
        async with aiohttp.ClientSession() as session:

            async def call() -> None:
                async with session.post(
                    f"http://127.0.0.1:{port}/v1/chat/completions", json=body
                ) as answer:
                    await answer.read()

            for _ in range(100):
                try:
                    await call()
                    break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.2)
            began = cpu_seconds(proxy.pid)
            for _ in range(count // 8):
                await asyncio.gather(*(call() for _ in range(8)))
            return (cpu_seconds(proxy.pid) - began) / count * 1000

    try:
        return asyncio.run(calls(800)), asyncio.run(calls(200, stream=True))
    finally:
        for process in (proxy, server):
            process.terminate()
            process.wait()


def main() -> None:
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        bare, recorded, plain = recording(folder)
        plain_calls = [Trace(model_calls=calls_of(8, 1200, 60, n)) for n in range(1000)]
        one_by_one = ingest(folder, "ids", plain_calls)
        growing = ingest(
            folder,
            "grows",
            [Trace(model_calls=calls_of(96, 1200, 30, n, grows=30)) for n in range(40)],
        )
        texts = [talk(n) for n in range(300)]
        with_texts = ingest(folder, "texts", texts)
        redacted = ingest(folder, "redacted", texts, Redactor().trace)
        with TraceStore(folder / "size.db") as store:
            store.append(Trace(model_calls=calls_of(96, 200, 30, 1, grows=30)))
            store.flush()
            ((_, size),) = store.read(SIZES)
        naive = sum(
            4 * (len(c.prompt_ids) + 2 * len(c.sampled_ids))
            for c in calls_of(96, 200, 30, 1, grows=30)
        )
        rows = rows_per_second()
        whole, streamed = proxied(folder)
        large, small = constant_memory(folder, 100_000)
    table = Table(
        title=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        box=None,
    )
    for column in ("what", "measured", "beside", "wanted"):
        table.add_column(column)
    for line in (
        ("recording, CPU a model call on the caller's path", f"{recorded - bare:.3f} ms",
         f"a handler that does nothing {plain - bare:.3f} ms, the bare call {bare:.2f} ms", "0.1 ms"),
        ("ingest, durable, 1,200 prompt and 60 sampled ids", f"{one_by_one:,.0f} calls/s", f"of growing conversations {growing:,.0f}", "5,000"),
        ("the same with texts", f"{with_texts:,.0f} calls/s", f"and redacted {redacted:,.0f}", ""),
        ("a run of 96 calls that grows by 60 tokens", f"{size / 1000:.0f} KB", f"every call whole {naive / 1e6:.1f} MB", "100 KB"),
        ("traces to rows and trie", f"{rows:,.0f} calls/s", "CPU", "40,000"),
        ("peak memory, half of 100,000 traces filtered and read", f"{large * 1000:.0f} KB", f"of 10,000 {small * 1000:.0f} KB", "constant"),
        ("the proxy, CPU a call, its writer included", f"{whole:.1f} ms", f"streamed in 60 pieces {streamed:.1f} ms", "1.5 ms"),
    ):  # fmt: skip
        table.add_row(*line)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
