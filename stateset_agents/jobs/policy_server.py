"""What serves the policy of a job: servers that run already, or an engine that is started for it and watched."""

import asyncio
import contextlib
import hashlib
import json
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from stateset_agents.errors import BadInput
from stateset_agents.policy.capabilities import probe
from stateset_agents.policy.chat_model import Render, close_connections, connect
from stateset_agents.policy.chat_template import default_chat_template
from stateset_agents.policy.pool import Servers
from stateset_agents.policy.publishing import check_adapter, publish, served_models
from stateset_agents.policy.weight_files import InPlace, adapter_of_nothing
from stateset_agents.server.supervisor import (
    Launch,
    Supervised,
    free_port,
    port_is_free,
    supervised,
)
from stateset_agents.server.vllm import process as vllm
from stateset_agents.server.vllm.gpus import Share, gpus, share_out
from stateset_agents.settings import load_settings, policy_key

SEED_POLICY = Path(__file__).parents[1] / "seed_policy"
ALL = Share()


class Asked(Protocol):
    """What a job says of its policy."""

    @property
    def model(self) -> str: ...
    @property
    def base_url(self) -> str | None: ...
    @property
    def engine(self) -> str | None: ...
    @property
    def replicas(self) -> int: ...
    @property
    def gpu_memory_utilization(self) -> float | None: ...
    @property
    def max_model_len(self) -> int | None: ...
    @property
    def tool_parser(self) -> str | None: ...
    @property
    def full(self) -> bool: ...
    @property
    def staleness(self) -> int: ...
    @property
    def nodes(self) -> tuple[str, ...]: ...
    @property
    def rank(self) -> int: ...
    @property
    def concurrency(self) -> int: ...


def model_path(model: str) -> str:
    """`seed` is the policy that ships with the package; anything else is a path or a hub name."""
    return str(SEED_POLICY) if model == "seed" else model


def where(base_url: str | None, engine: str | None) -> dict[str, str]:
    """What a config is told of both: servers that the settings name are not asked where an engine is."""
    found = {
        "base_url": base_url or (None if engine else load_settings().base_url),
        "engine": engine,
    }
    return {name: value for name, value in found.items() if value is not None}


def engine_of(asked: str | None) -> str:
    """`embedded` or `vllm`: what was asked for, else the settings'; `auto` takes vLLM where it is installed."""
    settings = load_settings()
    engine = asked or settings.engine
    if engine == "auto":
        return "vllm" if vllm.installed(settings.vllm) else "embedded"
    return engine


def check(config: Asked, *, training: bool = False) -> None:
    """Raises BadInput where the engine that is asked for cannot be started, beside a trainer or alone."""
    if config.base_url is None:
        with tempfile.TemporaryDirectory() as folder:
            launch_of(config, 0, Path(folder))
        _shares(config, training=training)


def launch_of(
    config: Asked, port: int, folder: Path, *, host: str = "127.0.0.1", threads: int = 1,
    slots: int | None = None, adapters: dict[str, str] | None = None, extra: tuple[str, ...] = (),
    also: Sequence[Path] = (), weights: Path | None = None, share: Share = ALL, whole: str = "", name: str = "policy",
) -> Launch:  # fmt: skip
    """What starts the engine that a job asks for, its model as `name`, with room for the adapters `also`, with other `weights` of its
    model where they are given, with its `share` of the GPUs, and with a key for who may put whole models in place. Raises BadInput where
    it cannot be started, or what was said is not for it."""
    settings = load_settings()
    path, key = model_path(config.model), policy_key()
    slots = slots or (config.concurrency + config.concurrency // 2 if config.concurrency else 384)
    if engine_of(config.engine) == "vllm":
        _check_one_at_a_time(config, also, weights)
        return vllm.launch(
            path, port, name=name, python=vllm.find_python(settings.vllm), folder=folder, host=host, threads=threads, slots=slots,
            rank=max([config.rank, *map(_rank, also)]), max_model_len=config.max_model_len, parser=config.tool_parser,
            gpu_memory_utilization=config.gpu_memory_utilization or share.memory, devices=share.devices, adapters=adapters,
            weights=weights, whole=whole, key=key, extra=extra,
        )  # fmt: skip
    for option in ("gpu_memory_utilization", "max_model_len", "tool_parser"):
        if getattr(config, option) is not None:
            raise BadInput(
                f"--{option.replace('_', '-')}: vLLM reads it, and the engine is the embedded one (--engine vllm)."
            )
    from stateset_agents.server.engine import process as embedded

    return embedded.launch(
        path, port, host=host, threads=threads, slots=slots, adapters=adapters, key=key
    )


def _shares(config: Asked, *, training: bool = False) -> list[Share]:
    if engine_of(config.engine) != "vllm":
        return [ALL] * config.replicas
    return share_out(gpus(), config.replicas, training=training)


def _check_one_at_a_time(config: Asked, also: Sequence[Path], weights: Path | None) -> None:
    """vLLM holds many adapters, and one whole model. Raises BadInput where two would be needed at once."""
    if config.full and config.staleness:
        raise BadInput(
            "--staleness: expected 0 with --full on vLLM, which holds one whole model at a time; train adapters, or give --engine embedded."
        )
    if config.full and config.nodes:
        raise BadInput(
            "--node: expected none with --full on vLLM, which holds one whole model at a time, and the other nodes need the base; train "
            "adapters, or give --engine embedded."
        )
    if whole := next((path for path in also if is_whole(path)), None):
        raise BadInput(
            f"Expected an adapter beside the model on vLLM, which holds one whole model at a time, found the whole one {str(whole)!r}. "
            "Give --engine embedded."
        )
    if weights is not None and also:
        raise BadInput(
            f"Expected no adapter beside the whole model {str(weights)!r} on vLLM, found {str(also[0])!r}: it is of the base, which vLLM "
            "would not hold. Give --engine embedded."
        )
    if weights is not None:
        check_adapter(weights)
        _check_same_model(model_path(config.model), weights)


SHAPE = ("architectures", "vocab_size", "hidden_size", "num_hidden_layers")


def _check_same_model(model: str, weights: Path) -> None:
    from transformers import AutoConfig

    base, found = (AutoConfig.from_pretrained(str(one)).to_dict() for one in (model, weights))
    for name in SHAPE:
        if base.get(name) != found.get(name):
            raise BadInput(
                f"Expected weights of {model!r} in {str(weights)!r}, found another {name}: {found.get(name)} in the place of "
                f"{base.get(name)}. Give the --model that was trained."
            )


def is_whole(weights: Path) -> bool:
    """Whether a folder that training left holds a whole model, and no adapter."""
    return not (weights / "adapter_config.json").is_file()


def _rank(adapter: Path) -> int:
    """An adapter's; 0 of a whole model."""
    config = adapter / "adapter_config.json"
    return int(json.loads(config.read_text()).get("r", 0)) if config.is_file() else 0


@contextlib.asynccontextmanager
async def policy_server(
    config: Asked,
    run: Path,
    say: Callable[[str], None] = lambda told: None,
    *,
    exact: bool = True,
    also: Sequence[Path] = (),
    weights: Path | None = None,
    training: bool = False,
) -> AsyncIterator[tuple[str, str]]:
    """The policy's base URL, or several with commas between them, and its base model's name: external servers', or an engine's that is
    started, with other `weights` where they are given, beside a trainer or alone. Where what is sampled has to be known (`exact`), what
    they can do is asked first. Raises BadInput where one cannot be started, PolicyRefused and NotExact where one cannot do it."""
    try:
        if config.base_url is not None:
            with waited_for(config.base_url):
                yield config.base_url, await _model_at(config.base_url, exact, adapters=training)
            return
        in_place = None
        if config.full and training and engine_of(config.engine) == "vllm":
            nothing = adapter_of_nothing(_folder_of(config.model), run / "in-place")
            in_place = InPlace(nothing, secrets.token_hex(16))
        launches = [
            launch_of(
                config, free_port(), run, also=also, weights=weights, share=share,
                whole=in_place.key if in_place else "", name=name_of(weights) if weights else "policy",
            )
            for share in _shares(config, training=training)
        ]  # fmt: skip
        async with _running(launches, run, say):
            url = ",".join(one.url for one in launches)
            connect(url, "").servers.in_place = in_place
            with waited_for(url):
                yield url, await _model_at(url, exact)
    finally:
        await close_connections()


@contextlib.contextmanager
def waited_for(url: str) -> Iterator[None]:
    """While the block runs, servers that are away are waited for; after it nobody does, a node in a thread of its own included."""
    try:
        yield
    finally:
        connect(url, "").servers.jobs += 1


@contextlib.asynccontextmanager
async def _running(
    launches: Sequence[Launch], folder: Path, say: Callable[[str], None]
) -> AsyncIterator[list[Supervised]]:
    """Servers side by side, started at once; where one cannot start, the others are ended."""
    async with contextlib.AsyncExitStack() as stack:
        logs = [folder / f"engine{f'-{n + 1}' if n else ''}.log" for n in range(len(launches))]
        starts = [
            asyncio.create_task(stack.enter_async_context(supervised(one, log, say)))
            for one, log in zip(launches, logs, strict=True)
        ]
        try:
            yield await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)


def renderer(tokenizer: Any) -> Render:
    """A tokenizer's chat template as a policy's `render`."""
    from stateset_agents.server.engine import protocol

    if not tokenizer.chat_template:
        tokenizer.chat_template = default_chat_template()
    return lambda messages, tools: protocol.render(tokenizer, messages, tools)


PROBED: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Is {"zip": "02134"} the caf\u00e9 at 5\u202fth St.?'},
]


async def check_tokenizer(servers: Servers, model: str, tokenizer: Any) -> None:
    """Raises BadInput where the servers make other tokens of the same messages than the tokenizer that is trained with."""
    asked = {"model": model, "messages": PROBED, "max_tokens": 1, "return_token_ids": True}
    answer, _ = await servers.post(
        "/chat/completions", asked, patience=load_settings().away_seconds
    )
    there = list(answer["prompt_token_ids"])
    here = renderer(tokenizer)(PROBED, None)
    if here != there:
        raise BadInput(
            f"Expected the tokenizer of {tokenizer.name_or_path!r} behind {', '.join(servers.urls)}, found one that makes other tokens of "
            f"the same messages ({len(there)} against {len(here)}). Give the --model that is served there."
        )


async def _model_at(url: str, exact: bool, *, adapters: bool = False) -> str:
    servers = connect(url, "").servers
    return (
        (await probe(servers, adapters=adapters)).model
        if exact
        else (await served_models(servers))[0]
    )


@contextlib.asynccontextmanager
async def served_policy(
    config: Asked, adapter: Path | None, folder: Path, say: Callable[[str], None] = lambda told: None, *,
    exact: bool = True, also: Sequence[Path] = (),
) -> AsyncIterator[tuple[str, str]]:  # fmt: skip
    """Like `policy_server`, with an adapter loaded: its URL and the name to ask for. `also` are adapters that are loaded later."""
    weights, adapter = _apart(config, adapter)
    every = [*also, *([adapter] if adapter is not None else [])]
    async with policy_server(config, folder, say, exact=exact, also=every, weights=weights) as (
        url,
        base_name,
    ):
        if adapter is None:
            yield url, base_name
            return
        yield url, await serve_adapter(url, adapter)


def _apart(config: Asked, adapter: Path | None) -> tuple[Path | None, Path | None]:
    """A whole model that vLLM is to be started with, and what is loaded once an engine runs."""
    if adapter is None or config.base_url is not None:
        return None, adapter
    return (
        (adapter, None)
        if engine_of(config.engine) == "vllm" and is_whole(adapter)
        else (None, adapter)
    )


async def serve(
    config: Asked, adapter: Path | None, *, host: str, port: int, threads: int, slots: int, extra: tuple[str, ...]
) -> None:  # fmt: skip
    """Serve until stopped; a server that dies is started again. Raises BadInput and PolicyUnreachable where one cannot start, and what
    the last one died of where it is given up."""
    if extra and engine_of(config.engine) != "vllm":
        raise BadInput(f"{extra[0]}: expected options of vLLM's with --engine vllm alone.")
    beyond = host not in ("127.0.0.1", "localhost", "::1")
    if beyond and not policy_key():
        raise BadInput(
            f"--host {host}: expected STATESET_POLICY_KEY to be set where others can reach the server, found no key."
        )
    ports = range(port, port + config.replicas)
    for one in ports:
        port_is_free(host, one)
    weights, adapter = _apart(config, adapter)
    loads = {"policy-trained": str(adapter)} if adapter else None
    with tempfile.TemporaryDirectory() as folder:
        launches = [
            launch_of(
                config, one, Path(folder), host=host, threads=threads, slots=slots, adapters=loads, extra=extra,
                also=[adapter] if adapter else [], weights=weights, share=share, name="policy-trained" if weights else "policy",
            )
            for one, share in zip(ports, _shares(config), strict=True)
        ]  # fmt: skip
        print(
            f"starting {launches[0].name}{f' {len(launches)} times' if len(launches) > 1 else ''}",
            flush=True,
        )
        async with _running(
            launches, Path(folder), lambda told: print(told, flush=True)
        ) as running:
            url = ",".join(one.url for one in launches)
            able = await probe(connect(url, "").servers, adapters=True)
            await close_connections()
            print(f"policy {able.model!r} at {url} (stop with Ctrl-C)", flush=True)
            stopped = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, stopped.set)
            while not stopped.is_set():
                broken = [server.broken for server in running if server.broken]
                if len(broken) == len(running):
                    raise broken[-1]
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), 0.5)
            print("stopping", flush=True)


def name_of(weights: Path) -> str:
    """A name for an adapter, or a whole model, that its weights give it. Raises BadInput where it is not whole."""
    check_adapter(weights)
    digest = hashlib.sha256()
    for file in sorted(weights.glob("*model*.safetensors")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return f"policy-{digest.hexdigest()[:12]}"


def _folder_of(model: str) -> Path:
    """Where a model's files lie; one of the hub's is fetched."""
    path = Path(model_path(model))
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(path), allow_patterns=["*.safetensors", "*.json"]))


async def serve_adapter(url: str, adapter: Path) -> str:
    """Load an adapter under a name that its weights give it; the name."""
    name = name_of(adapter)
    await publish(connect(url, "").servers, name, adapter)
    return name


def find_adapter(policy: Path) -> Path:
    """The adapter of a run's folder, or an adapter's own folder, or the weights of a run that trained all. Raises BadInput."""
    for candidate in (policy / "adapter", policy):
        if any(
            (candidate / name).is_file() for name in ("adapter_config.json", "model.safetensors")
        ):
            return candidate.resolve()
    several = sorted(path.parent.name for path in policy.glob("adapter/*/adapter_config.json"))
    if several:
        raise BadInput(
            f"Expected one adapter at {str(policy)!r}, found {', '.join(several)}, each for nodes of its own. Name one: "
            f"{policy / 'adapter' / several[0]}."
        )
    raise BadInput(
        f"Expected a run or a PEFT adapter at {str(policy)!r}, found no adapter_config.json there."
    )
