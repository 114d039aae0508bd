"""A small shop of somebody else, in the form of public benchmarks: plain functions on a dict, errors as exceptions, amounts as Decimal."""

import copy
import datetime
from decimal import Decimal
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool

from stateset_agents import build_graph
from stateset_agents.scenario import Act, Change, Customer, Goal, Scenario

PROMPT = "You are a helpful agent of a shop for bicycles."
ORDERS = {
    f"#{n}": {"user": f"user_{n % 7}", "status": "delivered" if n % 3 else "pending", "total": Decimal(n) / 4}
    for n in range(1000, 1040)
}  # fmt: skip


class Shop:
    """One episode's shop."""

    def __init__(self, scenario: Scenario | None = None) -> None:
        self.orders: dict[str, dict[str, Any]] = copy.deepcopy(ORDERS)

    def clone(self) -> "Shop":
        twin = Shop()
        twin.orders = copy.deepcopy(self.orders)
        return twin

    def changes(self) -> tuple[Change, ...]:
        return tuple(
            Change(table="orders", key=key, column="status", value=order["status"])
            for key, order in self.orders.items()
            if order["status"] != ORDERS[key]["status"]
        )

    @property
    def tools(self) -> list[BaseTool]:
        return [
            StructuredTool.from_function(tool)
            for tool in (self.get_order_details, self.cancel_pending_order, self.return_order)
        ]

    def get_order_details(self, order_id: str) -> dict[str, Any]:
        """Get an order."""
        return {**self._order(order_id), "at": datetime.datetime(2026, 5, 3)}

    def cancel_pending_order(self, order_id: str, reason: str) -> dict[str, Any]:
        """Cancel a pending order."""
        order = self._order(order_id)
        if order["status"] != "pending":
            raise ValueError("Non-pending order cannot be cancelled")
        order["status"] = "cancelled"
        return order

    def return_order(self, order_id: str, preview: bool) -> Any:
        """Return a delivered order, or say what would be paid back."""
        order = self._order(order_id)
        if preview:
            return order["total"]
        if order["status"] != "delivered":
            raise ValueError("Non-delivered order cannot be returned")
        order["status"] = "returned"
        return order

    def _order(self, order_id: str) -> dict[str, Any]:
        if order_id not in self.orders:
            raise ValueError("Order not found")
        return self.orders[order_id]


def writes(name: str, arguments: dict[str, Any]) -> bool:
    """A preview needs no consent."""
    return name == "cancel_pending_order" or (name == "return_order" and not arguments["preview"])


def graph(policy: Any, shop: Shop) -> Any:
    return build_graph("bikes", prompt=PROMPT, policy=policy, tools=shop.tools, writes=writes)


def scenarios(count: int = 24) -> list[Scenario]:
    """Cancellations of pending orders and returns of delivered ones, each with its plan."""
    made = []
    for key, order in list(ORDERS.items())[:count]:
        look = Act(tool="get_order_details", arguments={"order_id": key})
        if order["status"] == "pending":
            reason = "no longer needed"
            act = Act(tool="cancel_pending_order", arguments={"order_id": key, "reason": reason})
            plan: tuple[Act, ...] = (look, act)
            status = "cancelled"
        else:
            preview = Act(tool="return_order", arguments={"order_id": key, "preview": True})
            act = Act(tool="return_order", arguments={"order_id": key, "preview": False})
            plan, status = (look, preview, act), "returned"
        change = Change(table="orders", key=key, column="status", value=status)
        made.append(
            Scenario(
                id=f"bikes-{key[1:]}", graph="bikes", plan=(*plan, Act(say="That is all.")),
                customer=Customer(opening=f"Please undo order {key}.", approves=(act,)), goal=Goal(changes=(change,)),
            )
        )  # fmt: skip
    return made


def wrong_plan() -> Scenario:
    """Tries what is not possible: an answer to the model, and no crash."""
    act = Act(tool="cancel_pending_order", arguments={"order_id": "#1000", "reason": "x"})
    return Scenario(
        id="bikes-wrong", graph="bikes", plan=(act, Act(say="It cannot be cancelled.")),
        customer=Customer(opening="Cancel #1000.", approves=(act,)),
    )  # fmt: skip
