"""A reply that states what nobody told the agent never reaches the customer."""

from typing import Any

import openai
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import Field

from stateset_agents.graphs import service
from stateset_agents.grounding import unsupported
from stateset_agents.policy.chat_model import connect
from stateset_agents.server.app import build
from stateset_agents.server.served import served_agents
from stateset_agents.tools.shop.generate import generate
from tests.servers import Running


class Says(BaseChatModel):
    """Says one thing after the other, and remembers what it was told."""

    replies: list[Any]
    prompts: list[str] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "says"

    def bind_tools(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        assert isinstance(messages[0], SystemMessage)
        self.prompts.append(messages[0].text)
        reply = self.replies.pop(0)
        message = reply if isinstance(reply, AIMessage) else AIMessage(reply)
        return ChatResult(generations=[ChatGeneration(message=message)])


async def answer(model: Says, *, guard: bool = True) -> dict[str, Any]:
    shop = generate(1, "train").clone()
    end: dict[str, Any] = await service.build(InMemorySaver()).ainvoke(
        {"messages": [HumanMessage("Where is W1234?")]},
        {"configurable": {"thread_id": "t"}},
        context=service.context(model, service.over(shop), thread="t", guard=guard),
    )
    shop.close()
    return end


async def test_an_invented_promise_is_held_back_and_asked_again() -> None:
    model = Says(replies=["Done, 45.00 is refunded to you.", "What is the zip code of W1234?"])
    end = await answer(model)
    assert [m.text for m in end["messages"][1:]] == ["What is the zip code of W1234?"]
    assert "held back" not in model.prompts[0]
    assert "45.00" in model.prompts[1]


async def test_who_insists_is_replaced_by_a_person() -> None:
    end = await answer(Says(replies=["It arrives on 3 May."] * 9))
    assert end["handed_off"]["reason"].endswith("3 may")
    assert "3 May" not in " ".join(m.text for m in end["messages"])


async def test_words_beside_a_tool_call_are_guarded_too() -> None:
    call = {"name": "policy_lookup", "args": {"topic": "x"}, "id": "c"}
    model = Says(
        replies=[AIMessage("A 50% voucher is yours.", tool_calls=[call]), AIMessage("Hello.")]
    )
    end = await answer(model)
    assert [m.text for m in end["messages"][1:]] == ["Hello."]


async def test_without_the_guard_everything_passes() -> None:
    end = await answer(Says(replies=["It arrives on 3 May."]), guard=False)
    assert end["messages"][-1].text == "It arrives on 3 May."


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_held_back_is_not_streamed_either(stream: bool) -> None:
    shop = generate(1, "train").clone()
    model = Says(replies=["A 50% off voucher for you!", "What is the order number?"])
    served = served_agents(
        compile=service.build,
        context=lambda thread: service.context(
            model, service.over(shop), thread=thread, guard=True
        ),
        step_limit=service.STEP_LIMIT,
    )
    messages: list[Any] = [{"role": "user", "content": "hi"}]
    async with (
        Running(build({"service": served}, key=None)) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        if stream:
            chunks = await client.chat.completions.create(
                model="service", messages=messages, stream=True
            )
            reply = "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices])
        else:
            whole = await client.chat.completions.create(model="service", messages=messages)
            reply = whole.choices[0].message.content or ""
    assert reply == "What is the order number?"


@pytest.mark.parametrize(
    ("reply", "tools", "acted", "wrong"),
    [
        ("It arrives on 3 May with DHL.", ['{"arrives": "3 May", "carrier": "DHL"}'], False, []),
        ("I cannot cancel it, it is already shipped.", ['{"status": "shipped"}'], False, []),
        ("It cannot be refunded, it was delivered 40 days ago.", ['"delivered 40 days ago"'], False, []),
        ("It was cancelled before.", ['{"status": "cancelled"}'], False, []),
        ("Your order is cancelled.", ['{"status": "pending"}'], False, ["cancelled"]),
        ("Your order is cancelled.", ['{"cancelled": "W1"}'], True, []),
        ("You get 12.00 back.", ['{"amount": "11.00"}'], True, ["12.00"]),
        ("Shipping is free.", [], False, ["free"]),
        ("No problem, your order is cancelled.", [], False, ["cancelled"]),
        ("Your order is cancelled, no need to do anything.", [], False, ["cancelled"]),
        ("Would you like the lamp refunded?", [], False, []),
        ("It arrives on July 20.", ['{"arrives": "20 July"}'], False, []),
        ("You get 1,250.00 back.", ['{"refunded": "1250.00"}'], True, []),
        ("What is the order number and the zip code?", [], False, []),
        ("Is it order W1234?", [], False, []),
        ("It comes with UPS.", ['{"carrier": "DPD"}'], False, ["UPS"]),
        ("It comes with dpd, not with FedEx.", ['{"carrier": "DPD"}'], False, ["FedEx"]),
        ("OK, the total in EUR includes VAT.", [], False, []),
        ("PLEASE WAIT A MOMENT.", [], False, []),
        ("It is DHL.", ['{"carrier": "DPD"}'], False, ["DHL"]),
        ("Your parcel is with UPS now.", ['{"items": ["2 coffee cups"]}'], False, ["UPS"]),
        ("It is NOT shipped yet, and ONLY in XL.", [], False, []),
    ],
)  # fmt: skip
def test_what_counts_as_unsupported(
    reply: str, tools: list[str], acted: bool, wrong: list[str]
) -> None:
    assert unsupported(reply, customer=["Where is W1234?"], tools=tools, acted=acted) == wrong


def test_an_agents_own_prompt_supports_figures_and_no_offers() -> None:
    def wrong(reply: str) -> list[str]:
        prompt = "Returns are free of charge within 30 days, with DHL. Never promise a voucher."
        return unsupported(reply, customer=[], tools=[], acted=False, prompt=prompt)

    assert wrong("You can send it back within 30 days, with DHL.") == []
    assert wrong("You have 40 days.") == ["40"]
    assert wrong("I give you a voucher.") == ["voucher"]


async def test_what_the_bundled_policy_says_of_twelve_orders_is_true(engine: str) -> None:
    shop = generate(1, "train").clone()
    orders = shop.all(
        "SELECT orders.id, zip, carrier, shipments.status FROM orders JOIN shipments ON order_id = orders.id ORDER BY 1"
    )
    policy = connect(engine, "policy").model_copy(update={"temperature": 0.0})
    for order in orders[:12]:
        context = service.context(policy, service.over(shop), thread=order["id"], guard=True)
        question = f"Where is my order? Order {order['id']}. My zip is {order['zip']}."
        state = await service.build().ainvoke(
            {"messages": [HumanMessage(question)]}, context=context
        )
        words = state["messages"][-1].text
        if state.get("handed_off") is None:
            assert order["carrier"] in words
            assert ("delivered" in words) == (order["status"] == "delivered")
