"""A policy server that only waits: it gives the answers of a table, each after the time an engine would take. For
benchmarks/serving.py."""

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from aiohttp import web


def key(path: str, body: dict[str, Any]) -> str:
    """What makes two calls the same: all but the version that is asked."""
    request = {name: value for name, value in body.items() if name != "model"}
    return hashlib.sha256(json.dumps([path, request], sort_keys=True).encode()).hexdigest()


def serve(table: dict[str, Any], port: int, seconds: float) -> None:
    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        path = request.path.removeprefix("/v1")
        if path == "/completions":  # a plain loop's: nobody reads what is said
            await asyncio.sleep(seconds * body["max_tokens"])
            return web.json_response({"choices": []})
        recorded = table[key(path, body)]
        if "choices" in recorded:
            await asyncio.sleep(seconds * len(recorded["choices"][0]["token_ids"]))
        return web.json_response(recorded)

    async def healthy(request: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    app.router.add_get("/health", healthy)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    serve(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), float(sys.argv[3]))
