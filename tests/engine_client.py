"""Requests to a policy server as tests make them, and what transformers says of the same tokens."""

from pathlib import Path
from typing import Any

import aiohttp
import peft
import torch
from transformers import AutoModelForCausalLM

from stateset_agents.policy.weight_files import SEED_POLICY
from stateset_agents.tools.toolset import SERVICE_PROMPT, SERVICE_TOOLS

TOOLS: Any = [tool.schema() for tool in SERVICE_TOOLS]
MESSAGES: Any = [
    {"role": "system", "content": SERVICE_PROMPT},
    {"role": "user", "content": "Where is my order? My order is W39841. My zip is 62169."},
]


async def post(url: str, path: str, body: Any, status: int = 200) -> Any:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}{path}", json=body) as answer,
    ):
        assert answer.status == status, await answer.text()
        assert status == 403 or answer.headers["x-request-id"]
        return await answer.json() if "json" in answer.headers["content-type"] else None


async def ask(url: str, **options: Any) -> Any:
    body = {"model": "policy", "messages": MESSAGES, "tools": TOOLS, "logprobs": True,
            "return_token_ids": True, "max_tokens": 60, "temperature": 0.0, **options}  # fmt: skip
    return await post(url, "/chat/completions", body)


def plain_logprobs(
    prompt: list[int], sampled: list[int], adapter: Path | None = None, *, base: Path = SEED_POLICY
) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *sampled]])).logits[0]
    every = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return every.gather(1, torch.tensor(sampled)[:, None]).squeeze(1)


def reported(answer: Any) -> torch.Tensor:
    return torch.tensor([e["logprob"] for e in answer["choices"][0]["logprobs"]["content"]])


def an_adapter(folder: Path, base: str, *, scale: float = 0.05) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    lora = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    lora.save_pretrained(str(folder))
    return folder
