"""No sequence of calls, sensible or not, breaks an invariant of the shop. `make fuzz N=100000` goes on."""

import collections
import math
import os
import random
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from stateset_agents.tools.executor import Executor, Outcome, audit_holds
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.money import show
from stateset_agents.tools.tool import Role, Session
from stateset_agents.tools.toolset import ALL_TOOLS
from tests.invariants import broken

CALLS = int(os.environ.get("STATESET_FUZZ_CALLS", "20000"))
STEPS = 50
NASTY: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        ["", "W00000", "0", "-1", "1e9", "NaN", "12,50", "\u0663\u0664", "\uff571234", "L1\u200b", "a\0b", "\ud800", "x" * 10_000,
         "'; DROP TABLE orders; --", -1, 0, 10**30, 0.1, math.nan, math.inf, None, True, [], {}, ["P10"]]
    ),
    st.text(max_size=5),
)  # fmt: skip
AFTER_DELIVERY = ("issue_refund", "create_return", "exchange", "attach_claim_photo")
ROLES: dict[str, Role] = {
    "find_customer": "staff", "get_risk_assessment": "staff", "flag_fraud": "staff", "hold_order": "staff",
    "release_hold": "staff", "propose_price_change": "merchant", "create_promotion": "merchant",
}  # fmt: skip
FREE = ("hold_order", "release_hold", "flag_fraud", "escalate_to_human", "create_ticket")
"""Tools that may touch an order that is on hold, or somebody else's."""


class Shopping(RuleBasedStateMachine):
    """A model that calls whatever it likes, for three roles in turn."""

    done: ClassVar[collections.Counter[str]] = collections.Counter()
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.shop = generate(6, "train").clone()
        self.executor = Executor(self.shop, ALL_TOOLS, approvals=True)
        self.customers = [r["id"] for r in self.shop.all("SELECT id FROM customers ORDER BY id")]
        self.session = Session(customer=self.customers[0])
        self.changes = self.shop.changes()
        self.steps = 0
        self.about = ""
        self.somebody_else(0)
        self.secrets = {
            row["id"]: (row["email"], row["token"])
            for row in self.shop.all(
                "SELECT customers.id, email, token FROM customers JOIN instruments ON customer_id = customers.id"
            )
        }

    def known(self, column: str, table: str, where: str = "TRUE") -> list[Any]:
        rows = self.shop.all(f"SELECT {column} AS it FROM {table} WHERE {where} ORDER BY 1")
        return [row["it"] for row in rows] or [""]

    def value(self, rng: random.Random, field: str) -> Any:
        """A likely value of a field: real ids, the customer's own orders more often than not."""
        match field:
            case "order_id" if self.about:
                return self.about
            case "order_id":
                own = f"customer_id = '{self.session['customer']}'"
                pending = self.known("id", "orders", f"{own} AND status = 'pending'")
                if pending != [""] and rng.random() < 0.4:
                    return rng.choice(pending)
                mine = self.known("id", "orders", own)
                return rng.choice(mine if rng.random() < 0.85 else self.known("id", "orders"))
            case "line":
                return rng.choice(["L1", "L1", "L1", "L2"])
            case "sku" | "other_sku":
                return rng.choice(self.known("sku", "products"))
            case "skus":
                return rng.sample(self.known("sku", "products"), 2)
            case "items":
                skus = rng.sample(self.known("sku", "products"), rng.randint(1, 2))
                return [{"sku": sku, "quantity": rng.randint(1, 3)} for sku in skus]
            case "code":
                return rng.choice(
                    ["", "", *self.known("code", "promotions"), f"NEW{rng.randrange(99)}"]
                )
            case "zip":
                return rng.choice(self.known("zip", "customers"))
            case "photo":
                return rng.choice(self.known("id", "media"))
            case "email":
                return rng.choice(self.known("email", "customers"))
            case "price" | "budget":
                return f"{rng.randint(1, 160)}.{rng.randrange(100):02d}"
            case "quantity" | "percent" | "days":
                return rng.randint(1, 40)
            case "granted":
                return rng.random() < 0.5
            case "method":
                return rng.choice(["standard", "express"])
            case "kind":
                return rng.choice(["complaint", "account_takeover"])
            case "purpose":
                return "marketing"
        return rng.choice(["1 New Road", "broken"])

    def fitting(self, rng: random.Random, name: str) -> None:
        """Become somebody who may call this tool, with an order that it is about."""
        role: Role = ROLES.get(name, "customer")
        wanted = "delivered" if name in AFTER_DELIVERY else "pending"
        owners = self.known("customer_id", "orders", f"status = '{wanted}' AND hold IS NULL")
        self.session = Session(
            customer=rng.choice(owners), role=role, seen=self.known("sku", "products")
        )
        if name == "split_shipment":  # what leaves on two days has a line that waits
            two = "SELECT order_id FROM lines JOIN inbound USING(sku) WHERE line = 'L1' INTERSECT SELECT order_id FROM lines WHERE line = 'L2'"
            own = f"customer_id = '{self.session['customer']}' AND status = 'pending' AND id IN ({two})"
            self.about = rng.choice(self.known("id", "orders", own))
            line = {"order_id": self.about, "line": "L1"}
            self.executor.commit(
                self.session, "backorder", line, confirmed=True, key=f"wait{self.steps}"
            )
            self.changes = self.shop.changes()

    def likely(self, rng: random.Random, name: str) -> dict[str, Any]:
        """Arguments that often are the right ones: what an able agent would have looked up."""
        arguments = {
            field: self.value(rng, field)
            for field in self.executor.tools[name].arguments.model_fields
        }
        if rng.random() < 0.3:
            return arguments
        line = self.shop.first(
            "SELECT sku, unit_price FROM lines WHERE order_id = ? AND line = ?",
            arguments.get("order_id", ""), arguments.get("line", "L1"),
        )  # fmt: skip
        if line is not None and name in ("substitute_line", "exchange"):
            family = f"family = (SELECT family FROM products WHERE sku = '{line['sku']}')"
            arguments["sku"] = rng.choice(self.known("sku", "products", family))
        if line is not None and name == "price_match":
            arguments["price"] = show(line["unit_price"] * 9 // 10)
        if line is not None and name == "attach_claim_photo":
            arguments["photo"] = f"M-{arguments['order_id']}-{arguments['line']}"
        if name == "propose_price_change":
            price = self.shop.the("SELECT price FROM products WHERE sku = ?", arguments["sku"])[
                "price"
            ]
            arguments["price"] = show(price * rng.randint(70, 115) // 100)
        return arguments

    @rule(seed=st.integers(0, 2**32), nasty=NASTY)
    def call_again(self, seed: int, nasty: Any) -> None:
        self.call(seed, nasty)

    @rule(seed=st.integers(0, 2**32), nasty=NASTY)
    def call_once_more(self, seed: int, nasty: Any) -> None:
        self.call(seed, nasty)

    @rule(seed=st.integers(0, 2**32), nasty=NASTY)
    def call(self, seed: int, nasty: Any) -> None:
        # Hypothesis likes few seeds (small ones, constants of whatever modules are loaded): counted on, no two calls are
        # drawn alike, in whatever order tests run.
        self.steps += 1
        rng = random.Random(f"{seed}/{self.steps}/{type(self).calls}")
        tool = rng.choice(ALL_TOOLS)
        self.about = ""
        if rng.random() < 0.5:
            self.fitting(rng, tool.name)
        arguments = self.likely(rng, tool.name)
        for quote in ("amount", "total"):
            if quote in arguments and rng.random() < 0.8:
                arguments[quote] = self.right(tool.name, arguments)
        if rng.random() < 0.1:
            arguments[rng.choice([*arguments, "more"])] = nasty
        before = self.shop.changes()
        outcome = self.executor.propose(self.session, tool.name, arguments)
        if outcome.status == "proposed":
            assert self.shop.changes() == before
            confirmed, approved = rng.choice(
                [(True, True), (True, True), (True, False), (False, True)]
            )
            key = "again" if rng.random() < 0.1 else f"k{type(self).calls}"
            outcome = self.committed(tool.name, arguments, confirmed, approved, key)
        self.settled(tool.name, outcome)

    def right(self, name: str, arguments: dict[str, Any]) -> Any:
        """The amount that the shop itself would quote."""
        reads = {"issue_refund": "check_return_eligibility", "place_order": "quote_order",
                 "change_shipping_method": "quote_shipping"}  # fmt: skip
        wanted = {f: arguments[f] for f in arguments if f not in ("amount", "total", "more")}
        outcome = self.executor.propose(self.session, reads[name], wanted)
        return outcome.result.get("amount") or outcome.result.get("total") or "1.00"

    def committed(
        self, name: str, arguments: dict[str, Any], confirmed: bool, approved: bool, key: str
    ) -> Outcome:
        before = self.shop.changes()
        outcome = self.executor.commit(
            self.session, name, arguments, confirmed=confirmed, approved=approved, key=key
        )
        if outcome.status != "done":
            return outcome
        after = self.shop.changes()
        assert confirmed or after == before or not self.executor.tools[name].confirm
        again = self.executor.commit(
            self.session, name, arguments, confirmed=True, approved=True, key=key
        )
        assert again.result == outcome.result
        assert self.shop.changes() == after
        return outcome

    def settled(self, name: str, outcome: Outcome) -> None:
        assert outcome.result.get("error") != "tool_failed", name
        after = self.shop.changes()
        new = set(after) ^ set(self.changes)
        if outcome.status != "done":
            assert not new, (name, outcome)
        else:
            type(self).done[name] += 1
            touched = {c.key.split("/")[0] for c in new if c.table in ("orders", "lines")}
            if name not in FREE:
                for order in touched:
                    row = self.shop.the("SELECT customer_id, hold FROM orders WHERE id = ?", order)
                    assert row["customer_id"] == self.session["customer"]
                    assert not row["hold"]
        if self.session.get("role", "customer") == "customer":
            message = str(outcome.result)
            for owner, secrets in self.secrets.items():
                if owner != outcome.session["customer"]:
                    assert not any(secret in message for secret in secrets), (name, message)
        self.session, self.changes = outcome.session, after
        type(self).calls += 1

    @rule(seed=st.integers(0, 2**32))
    def somebody_else(self, seed: int) -> None:
        self.steps += 1
        rng = random.Random(f"{seed}/{self.steps}")
        role: Role = rng.choice(["customer", "customer", "staff", "merchant"])
        seen = self.known("sku", "products") if rng.random() < 0.7 else []
        self.session = Session(customer=rng.choice(self.customers), role=role, seen=seen)

    def teardown(self) -> None:
        assert broken(self.shop) == []
        assert audit_holds(self.shop)
        self.shop.close()

    def check_invariants(self, settings: Any, *args: Any, **kwargs: Any) -> None:
        assert broken(self.shop) == []


def test_no_sequence_of_calls_breaks_an_invariant() -> None:
    Shopping.calls, Shopping.done = 0, collections.Counter()
    while Shopping.calls < CALLS:
        run_state_machine_as_test(
            Shopping,
            settings=settings(
                max_examples=20 + (CALLS - Shopping.calls) // STEPS, stateful_step_count=STEPS, deadline=None,
                database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=CALLS == 20_000,
            ),
        )  # fmt: skip
    print(f"{Shopping.calls} calls; done: {dict(Shopping.done)}")
    assert set(Shopping.done) == {tool.name for tool in ALL_TOOLS}
