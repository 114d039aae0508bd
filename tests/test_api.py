"""The short way in works as it reads."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from stateset_agents import (
    AgentConfig,
    AutoTrainer,
    ConversationEnvironment,
    MultiTurnAgent,
    train,
)
from stateset_agents.api import default_reward
from stateset_agents.errors import BadInput

DEMO = {"id": "cs_demo", "user_responses": ["Hi", "Need refund", "Thanks!"]}


async def test_auto_trainer_chooses_its_reward(tmp_path: Path) -> None:
    async with MultiTurnAgent(AgentConfig(model_name="seed")) as agent:
        env = ConversationEnvironment(scenarios=[DEMO], max_turns=3)
        trainer = AutoTrainer(num_episodes=8, output_dir=tmp_path)
        trained = await trainer.train(agent, env)
        assert trained.version.endswith("-v1")
        assert (tmp_path / trained.version.removesuffix("-v1") / "log.jsonl").is_file()
        assert trained.adapter is not None
        assert len(trainer.history) == 1
        assert await trained.generate_response("Where is my order?")


async def test_senseless_requests_are_refused(tmp_path: Path) -> None:
    agent = MultiTurnAgent(AgentConfig(model_name="seed"))
    env = ConversationEnvironment(scenarios=[DEMO])
    with pytest.raises(BadInput, match="at least one scenario"):
        ConversationEnvironment(scenarios=[])
    with pytest.raises(BadInput, match="field 'id'"):
        ConversationEnvironment(scenarios=[{"intent": "x"}])
    with pytest.raises(BadInput, match="at least 2"):
        await train(agent=agent, environment=env, reward_fn=default_reward(), num_episodes=1)
    with pytest.raises(BadInput, match="profile"):
        await train(agent=agent, environment=env, reward_fn=default_reward(), profile="wild")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="initialize"):
        _ = agent.policy
    missing = MultiTurnAgent(AgentConfig(model_name=str(tmp_path / "nothing")))
    with pytest.raises(BadInput, match="Hugging Face name"):
        await missing.initialize()
    await missing.close()


async def test_a_base_model_without_a_chat_template_is_given_one(tmp_path: Path) -> None:
    """A GPT-2 with random weights, made here: no template, another architecture."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.train_from_iterator(
        ["hello there"],
        BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False),
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(tmp_path)
    shape = GPT2Config(
        vocab_size=len(fast), n_embd=32, n_layer=2, n_head=2, n_positions=1024,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(shape).save_pretrained(tmp_path)
    config = AgentConfig(model_name=str(tmp_path), max_new_tokens=8)
    async with MultiTurnAgent(config) as agent:
        env = ConversationEnvironment(scenarios=[DEMO], max_turns=2)
        trained = await AutoTrainer(num_episodes=4, output_dir=tmp_path / "runs").train(agent, env)
        assert isinstance(await trained.generate_response("hi"), str)
