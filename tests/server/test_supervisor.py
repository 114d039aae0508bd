"""A server as a child process, and what vLLM's failures are told as."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stateset_agents.errors import BadInput, PolicyUnreachable
from stateset_agents.jobs.config import check_config
from stateset_agents.jobs.evaluate import evaluate_job
from stateset_agents.policy.weight_files import SEED_POLICY, adapter_of_nothing
from stateset_agents.reporting.events import EpisodeEnded, Event
from stateset_agents.server import supervisor
from stateset_agents.server.launch import Weights, engine_of, launch_of
from stateset_agents.server.options import ServerOptions, VllmOptions
from stateset_agents.server.supervisor import Launch, free_port, supervised
from stateset_agents.server.vllm import process as vllm
from stateset_agents.server.vllm.gpus import BESIDE_TRAINING, gpus, share_out
from stateset_agents.traces.store import TraceStore

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *told): pass
print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def a_launch(code: str = SERVER, seconds: float = 20, silent_seconds: float = 120) -> Launch:
    port = free_port()
    return Launch(
        name="the server",
        command=(sys.executable, "-c", code, str(port)),
        url=f"http://127.0.0.1:{port}/v1",
        seconds=seconds,
        silent_seconds=silent_seconds,
    )


def child_of(guard: int) -> int:
    return int(Path(f"/proc/{guard}/task/{guard}/children").read_text().split()[0])


async def gone(pid: int) -> None:
    for _ in range(200):
        try:  # one read: between two looks the process may be reaped
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")


async def test_a_server_that_dies_is_started_again_and_ends_with_the_block(tmp_path: Path) -> None:
    messages: list[str] = []
    async with supervised(a_launch(), tmp_path / "log", messages.append) as server:
        os.kill(child_of(server.pid), signal.SIGKILL)
        while server.restarts == 0:
            await asyncio.sleep(0.05)
        child = child_of(server.pid)
    await gone(child)
    assert "died" in messages[0]
    assert messages[-1] == "the server is back"


async def test_a_server_that_cannot_start_says_its_last_lines(tmp_path: Path) -> None:
    launch = a_launch("import sys; print('no such model'); sys.exit(3)")
    with pytest.raises(PolicyUnreachable, match=r"(?s)ended with 3.*no such model"):
        async with supervised(launch, tmp_path / "log"):
            pass
    hangs = a_launch("import time; print('loading', flush=True); time.sleep(60)", seconds=1)
    with pytest.raises(PolicyUnreachable, match=r"(?s)healthy within 1 s.*loading"):
        async with supervised(hangs, tmp_path / "log"):
            pass


async def test_a_server_that_dies_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTARTS", 2)
    once = tmp_path / "once"
    code = f"import pathlib, sys; p = pathlib.Path({str(once)!r}); p.exists() and sys.exit('worn out'); p.touch()"
    messages: list[str] = []
    async with supervised(a_launch(code + SERVER), tmp_path / "log", messages.append) as server:
        os.kill(child_of(server.pid), signal.SIGKILL)
        while server.broken is None:
            await asyncio.sleep(0.05)
    assert "worn out" in str(server.broken)
    assert "given up" in messages[-1]


async def test_a_restart_that_is_too_slow_does_not_end_the_watch(tmp_path: Path) -> None:
    count = tmp_path / "count"
    code = (
        f"import pathlib, time; p = pathlib.Path({str(count)!r}); n = len(p.read_text()) if p.exists() else 0; "
        "p.write_text('x' * (n + 1)); time.sleep(60 if n == 1 else 0)\n"
    )
    async with supervised(a_launch(code + SERVER, seconds=3), tmp_path / "log") as server:
        for restarts in (1, 2):
            os.kill(child_of(server.pid), signal.SIGKILL)
            while server.restarts < restarts:
                await asyncio.sleep(0.05)
                assert server.broken is None


async def test_a_server_that_hangs_is_ended_and_started_again(tmp_path: Path) -> None:
    messages: list[str] = []
    launch = a_launch(silent_seconds=1.2)
    async with supervised(launch, tmp_path / "log", messages.append) as server:
        hanging = child_of(server.pid)
        os.kill(hanging, signal.SIGSTOP)
        while server.restarts == 0:
            await asyncio.sleep(0.05)
        await gone(hanging)
    assert "hung" in messages[0]
    assert "/health" in messages[0]


def test_no_server_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio, pathlib
from stateset_agents.server.supervisor import supervised
from tests.server.test_supervisor import a_launch, child_of
async def main():
    async with supervised(a_launch(), pathlib.Path({str(tmp_path / "log")!r})) as server:
        print(child_of(server.pid), flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    asyncio.run(gone(child))


@pytest.mark.parametrize(
    ("line", "messages"),
    [
        ("ValueError: Free memory on device cuda:0 (1/80 GiB) on startup is less than desired", "enough memory"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "enough memory"),
        ("ValueError: No available memory for the cache blocks.", "enough memory"),
        ("api_server.py: error: unrecognized arguments: --nonsense", "options that vLLM knows"),
        ("OSError: Can't load tokenizer for '/x'.", "a tokenizer beside the model"),
        ("ValueError: Unsupported: this model does not support LoRA yet.", "a model that vLLM can put adapters on"),
        ("OSError: [Errno 98] error while attempting to bind: address already in use", "a free port"),
    ],
)  # fmt: skip
def test_what_vllm_ends_with_is_said_with_a_remedy(line: str, messages: str) -> None:
    error = vllm._explain(1, ["INFO starting", f"(EngineCore pid=7) {line}", "bye"])
    assert isinstance(error, BadInput)
    assert f"Expected {messages}" in str(error)
    assert vllm._explain(1, ["nothing known"]) is None


def test_vllm_that_is_missing_or_of_another_version_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="install-vllm"):
        vllm.find_python(tmp_path / "nothing")
    fake = tmp_path / "old" / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text("#!/bin/sh\necho 0.9.1\n")
    fake.chmod(0o755)
    with pytest.raises(BadInput, match=r"from 0\.32 and below 0\.34, found 0\.9\.1"):
        vllm.find_python(tmp_path / "old")
    monkeypatch.setenv("STATESET_VLLM", str(tmp_path / "nothing"))
    with pytest.raises(BadInput, match="install-vllm"):
        launch_of(check_config({"engine": "vllm"}), tmp_path, ServerOptions(port=1))
    # `auto` takes what is there.
    assert engine_of("auto") == "embedded"
    (tmp_path / "old" / ".ready").touch()
    monkeypatch.setenv("STATESET_VLLM", str(tmp_path / "old"))
    assert engine_of("auto") == "vllm"
    with pytest.raises(BadInput, match="one whole model at a time"):
        launch_of(
            check_config({"engine": "vllm", "full": True, "staleness": 1}),
            tmp_path,
            ServerOptions(port=1),
        )
    with pytest.raises(
        BadInput, match=r"found 0\.9\.1"
    ):  # nodes go with whole models: only vLLM is too old
        launch_of(
            check_config({"engine": "vllm", "full": True, "nodes": ("reply",)}),
            tmp_path,
            ServerOptions(port=1),
        )
    with pytest.raises(BadInput, match="found the whole one"):
        launch_of(
            check_config({"engine": "vllm"}),
            tmp_path,
            ServerOptions(port=1),
            Weights(later=[tmp_path / "whole"]),
        )
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match="no adapter beside the whole model"):
        launch_of(
            check_config({"engine": "vllm"}),
            tmp_path,
            ServerOptions(port=1),
            Weights(whole=tmp_path, later=[adapter]),
        )
    other = tmp_path / "other"
    shutil.copytree(SEED_POLICY, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 99}))
    with pytest.raises(BadInput, match="found another vocab_size: 99"):
        launch_of(
            check_config({"engine": "vllm"}), tmp_path, ServerOptions(port=1), Weights(whole=other)
        )
    (other / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-2.safetensors"}})
    )
    with pytest.raises(BadInput, match=r"model-2\.safetensors missing"):
        launch_of(
            check_config({"engine": "vllm"}), tmp_path, ServerOptions(port=1), Weights(whole=other)
        )
    longer = check_config({"engine": "embedded", "max_model_len": 1024})
    command = launch_of(longer, tmp_path, ServerOptions(port=1)).command
    assert command[command.index("--max-model-len") + 1] == "1024"


def test_servers_and_the_trainer_share_the_gpus_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shares(count: int, replicas: int, training: bool) -> list[tuple[str | None, float | None]]:
        names = [str(n) for n in range(count)]
        return [
            (share.devices, share.memory) for share in share_out(names, replicas, training=training)
        ]

    assert shares(0, 2, True) == [(None, None)] * 2
    assert shares(4, 1, False) == [(None, None)]
    assert shares(4, 2, False) == [("0,1", None), ("2,3", None)]
    assert shares(1, 1, True) == [("0", BESIDE_TRAINING)]
    assert shares(4, 3, True) == [("1", None), ("2", None), ("3", None)]
    with pytest.raises(BadInput, match="a GPU for each server, and one for the trainer, found 2"):
        shares(2, 2, True)

    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,7")
    assert gpus() == ["3", "5", "7"]
    launch = vllm.launch(
        str(SEED_POLICY),
        ServerOptions(port=1),
        VllmOptions(
            python=Path("python"), folder=tmp_path, devices="3", gpu_memory_utilization=0.45
        ),
    )
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert "--gpu-memory-utilization 0.45" in " ".join(launch.command)
    assert "--enforce-eager" not in launch.command


def test_the_reader_of_tool_calls_is_chosen_by_the_template() -> None:
    assert vllm.tool_parser(vllm.chat_template(str(SEED_POLICY)) or "") == "hermes"
    assert vllm.tool_parser("{{ '<tool_call><function=' + name }}") == "qwen3_coder"
    assert vllm.tool_parser("[TOOL_CALLS] [") == "mistral"
    assert vllm.tool_parser("{{ messages }}") is None


def test_an_adapter_of_nothing_is_put_on_attention_and_on_no_expert(tmp_path: Path) -> None:
    shapes = {
        "model.layers.0.mlp.experts.0.down_proj.weight": [4, 8],
        "model.layers.0.mlp.down_proj.weight": [4, 8],
        "model.layers.0.self_attn.o_proj.weight": [6, 4],
    }
    save_file(
        {name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors"
    )
    made = load_file(
        adapter_of_nothing(tmp_path, tmp_path / "nothing") / "adapter_model.safetensors"
    )
    assert {name.removeprefix("base_model.model.model.layers.0."): list(share.shape) for name, share in made.items()} == {
        "self_attn.o_proj.lora_A.weight": [8, 4], "self_attn.o_proj.lora_B.weight": [6, 8]
    }  # fmt: skip
    assert not any(share.any() for share in made.values())
    save_file(
        {"transformer.h.0.attn.c_attn.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(BadInput, match="layers that an adapter fits on"):
        adapter_of_nothing(tmp_path, tmp_path / "nothing")


def test_what_starts_vllm_asks_for_exact_tokens(tmp_path: Path) -> None:
    launch = vllm.launch(
        str(SEED_POLICY),
        ServerOptions(port=8001, key="secret"),
        VllmOptions(python=Path("python"), folder=tmp_path, rank=24),
    )
    messages = " ".join(launch.command)
    for wanted in ("--logprobs-mode processed_logprobs", "--generation-config vllm", "--enable-lora",
                   "--max-lora-rank 32", "--tool-call-parser hermes", "--enable-prefix-caching"):  # fmt: skip
        assert wanted in messages
    assert "secret" not in messages
    assert launch.environment["VLLM_API_KEY"] == "secret"


async def test_one_of_two_engines_dies_in_the_middle_and_no_episode_is_lost(tmp_path: Path) -> None:
    config = check_config({"replicas": 2, "held_out": 24, "concurrency": 8, "max_tokens": 48})
    killed = asyncio.Event()

    async def kill_one() -> None:
        log = tmp_path / "engine-2.log"
        while not log.exists():
            await asyncio.sleep(0.05)
        await playing.wait()
        keepers = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        os.kill(child_of(int(keepers[-1])), signal.SIGKILL)
        killed.set()

    playing, episodes = asyncio.Event(), 0

    def report(event: Event) -> None:
        nonlocal episodes
        episodes += isinstance(event, EpisodeEnded)
        if episodes == 4:
            playing.set()

    killing = asyncio.create_task(kill_one())
    result = await evaluate_job(config, tmp_path, None, 1.0, report)
    await killing
    assert killed.is_set()
    assert (result.failed, len(result.outcomes)) == (0, 24)
    with TraceStore(tmp_path / "traces.db", create=False) as store:
        calls = [call for trace in store.traces() for call in trace.model_calls]
    assert any(call.tries > 1 for call in calls)
