"""`python -m stateset_agents.server.engine --model PATH`: the engine as a process of its own."""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

import torch
import uvicorn

from stateset_agents.errors import BadInput
from stateset_agents.server import listening
from stateset_agents.server.engine.app import build
from stateset_agents.server.engine.engine import Engine
from stateset_agents.server.engine.models import load_base


def main() -> int:
    parser = argparse.ArgumentParser(prog="stateset_agents.server.engine")
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", default="policy")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=96)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--adapters-from", action="append", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        model, renderer = load_base(options.model)
        engine = Engine(
            model, renderer, options.name, slots=options.slots, length=options.max_model_len,
            adapters_from=options.adapters_from or [Path.cwd()],
        )  # fmt: skip
        for adapter in options.adapter:
            name, _, path = adapter.partition("=")
            engine.load(name, path)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    threading.Thread(target=_end_when_broken, args=(engine,), daemon=True).start()
    app = build(engine, key=os.environ.get("STATESET_POLICY_KEY"))
    uvicorn.Server(listening.config(app, options.host, options.port)).run()
    return 0


def _end_when_broken(engine: Engine) -> None:
    """End the process if the engine cannot sample any more, so that it is restarted."""
    while engine.batcher.broken is None:
        time.sleep(0.5)
    time.sleep(1)  # those who wait are told
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
