"""Tools about the customer: who is writing, what is known of them, what they want kept."""

from typing import Any, Literal

from stateset_agents.tools.tool import Arguments, Desk, Tool, ToolError, Word


class Verify(Arguments):
    order_id: Word
    zip: Word


class Nothing(Arguments):
    pass


class Email(Arguments):
    email: Word


class Address(Arguments):
    street: Word
    zip: Word


class Consent(Arguments):
    purpose: Literal["marketing"]
    granted: bool


def verify_identity(desk: Desk, call: Verify) -> dict[str, Any]:
    customer = desk.shop.first(
        "SELECT customers.id, name FROM customers JOIN orders ON customer_id = customers.id "
        "WHERE orders.id = ? AND customers.zip = ?",
        call.order_id, call.zip,
    )  # fmt: skip
    if customer is None:
        raise ToolError("no_match", "ask for the order number and zip again")
    desk.session["customer"] = customer["id"]
    return {"verified": customer["name"]}


def find_customer(desk: Desk, call: Email) -> dict[str, Any]:
    customer = desk.shop.first(
        "SELECT id, name, tier FROM customers WHERE email = ?", call.email.lower()
    )
    if customer is None:
        raise ToolError("no_match", "ask for the e-mail address of the account")
    return {"customer": customer["id"], "name": customer["name"], "tier": customer["tier"]}


def get_customer(desk: Desk, call: Nothing) -> dict[str, Any]:
    customer = desk.shop.the(
        "SELECT name, email, tier, street, zip, locale, marketing FROM customers WHERE id = ?",
        desk.session["customer"],
    )
    return {**customer, "marketing": bool(customer["marketing"])}


def list_orders(desk: Desk, call: Nothing) -> dict[str, Any]:
    rows = desk.shop.all(
        "SELECT id, status FROM orders WHERE customer_id = ? ORDER BY id", desk.session["customer"]
    )
    return {"orders": {row["id"]: row["status"] for row in rows}}


def update_address(desk: Desk, call: Address) -> dict[str, Any]:
    check_address(call.street, call.zip)
    desk.shop.run(
        "UPDATE customers SET street = ?, zip = ? WHERE id = ?",
        call.street, call.zip, desk.session["customer"],
    )  # fmt: skip
    return {"address": f"{call.street}, {call.zip}"}


def set_consent(desk: Desk, call: Consent) -> dict[str, Any]:
    desk.shop.run(
        "UPDATE customers SET marketing = ? WHERE id = ?",
        int(call.granted), desk.session["customer"],
    )  # fmt: skip
    return {call.purpose: call.granted}


def check_address(street: str, zip: str) -> None:
    """Raises ToolError for what no parcel could be sent to."""
    if not street.strip():
        raise ToolError("bad_street", "ask for the street and house number")
    if not (zip.isascii() and zip.isdigit() and len(zip) == 5):
        raise ToolError("bad_zip", "ask for the five digits of the zip code")


TOOLS = (
    Tool(
        name="verify_identity",
        description="Check who is writing by an order number and the zip code of the account.",
        arguments=Verify,
        run=verify_identity,
        guesses="order_id",
    ),
    Tool(
        name="find_customer",
        description="A customer by e-mail address.",
        arguments=Email,
        run=find_customer,
    ),
    Tool(
        name="get_customer",
        description="The verified customer's name, e-mail, tier, address and consent.",
        arguments=Nothing,
        run=get_customer,
    ),
    Tool(
        name="list_orders",
        description="The verified customer's orders with their status.",
        arguments=Nothing,
        run=list_orders,
    ),
    Tool(
        name="update_address",
        description="Change the address of the verified customer's account.",
        arguments=Address,
        run=update_address,
        confirm=True,
    ),
    Tool(
        name="set_consent",
        description="Record whether the customer agrees to be written to.",
        arguments=Consent,
        run=set_consent,
        confirm=True,
    ),
)
