"""What LangSmith answers, as far as its real client asks us to: ingestion, projects, queries with pages, feedback."""

import gzip
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

PROJECT = str(uuid.UUID(int=7))
PAGE = 3
"""Runs of a page, few, so that there are several."""


class Double:
    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.feedback: list[dict[str, Any]] = []
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    double: Double

    def log_message(self, *args: Any) -> None: ...

    def body(self) -> Any:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        return json.loads(data or b"null")

    def answer(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        where = urlparse(self.path)
        if where.path.endswith("/info"):
            limits = {"use_multipart_endpoint": False, "size_limit": 50, "size_limit_bytes": 2**22,
                      "scale_up_nthreads_limit": 1, "scale_up_qsize_trigger": 1000, "scale_down_nempty_trigger": 4}  # fmt: skip
            self.answer({"version": "0.16.0", "batch_ingest_config": limits})
        elif where.path.endswith("/sessions"):
            name = parse_qs(where.query).get("name", [""])[0]
            body = {
                "id": PROJECT,
                "name": name,
                "tenant_id": PROJECT,
                "start_time": "2026-01-01T00:00:00Z",
                "reference_dataset_id": None,
            }
            self.answer([body] if name == "shop" else [])
        else:
            self.answer({"detail": f"unknown {where.path}"}, 404)

    def do_POST(self) -> None:
        where, body = urlparse(self.path), self.body()
        if where.path.endswith("/runs/batch"):
            for run in body.get("post", []):
                self.double.runs[run["id"]] = run
            for run in body.get("patch", []):
                self.double.runs.setdefault(run["id"], {}).update(run)
            self.answer({}, 202)
        elif where.path.endswith("/sessions"):
            self.answer(
                {
                    "id": PROJECT,
                    "name": body["name"],
                    "tenant_id": PROJECT,
                    "start_time": "2026-01-01T00:00:00Z",
                    "reference_dataset_id": None,
                }
            )
        elif where.path.endswith("/feedback"):
            self.double.feedback.append(body)
            self.answer(body)
        elif where.path.endswith("/v2/runs/query"):
            assert body["project_ids"] == [PROJECT]
            assert "INPUTS" in body["selects"]
            first = int(body.get("cursor") or 0)
            every = [self.shown(run) for run in self.double.runs.values()]
            more = first + PAGE < len(every)
            self.answer(
                {
                    "items": every[first : first + PAGE],
                    "next_cursor": str(first + PAGE) if more else None,
                }
            )
        else:
            self.answer({"detail": f"unknown {where.path}"}, 404)

    def shown(self, run: dict[str, Any]) -> dict[str, Any]:
        feedback = [f for f in self.double.feedback if f.get("run_id") == run["id"]]
        stats = {f["key"]: {"n": 1, "avg": f["score"]} for f in feedback}
        return {**run, "run_type": run["run_type"].upper(), "feedback_stats": stats}


@contextmanager
def langsmith() -> Iterator[Double]:
    double = Double()
    handler = type("BoundHandler", (Handler,), {"double": double})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    double.url = f"http://127.0.0.1:{server.server_port}"
    yield double
    server.shutdown()
    server.server_close()
    thread.join()
