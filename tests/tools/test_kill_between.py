"""A process that dies between proposal and commit, or right after the commit, leaves exactly one effect."""

import json
import signal
import subprocess
import sys

import pytest

from stateset_agents.tools.executor import audit_holds
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.shop.postgres import PostgresShop
from tests.invariants import broken


@pytest.mark.parametrize("dies_after_the_commit", [False, True])
def test_a_killed_process_leaves_exactly_one_effect(
    postgres_url: str, postgres_shop: PostgresShop, dies_after_the_commit: bool
) -> None:
    url = postgres_url.removesuffix("/postgres") + f"/{postgres_shop.schema}"
    postgres_shop.run(
        f"CREATE DATABASE {postgres_shop.schema}"
    )  # the checkpoints of this test alone
    command = [sys.executable, "-m", "tests.refund_process"]
    own = PostgresShop(url, schema="shop")
    own.migrate()
    own.load(generate(1, "train"))

    def refunds() -> int:
        return int(own.the("SELECT COUNT(*) AS n FROM payments WHERE kind = 'refund'")["n"])

    first = subprocess.Popen([*command, url, "shop", "propose"], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    message = json.loads(first.stdout.readline())
    assert [question["type"] for question in message["waiting"]] == ["confirmation"]
    first.kill()
    first.communicate()
    assert refunds() == 0
    if dies_after_the_commit:
        second = subprocess.run([*command, url, "shop", "die"], check=False, timeout=60)
        assert second.returncode == -signal.SIGKILL
        assert refunds() == 1
    last = subprocess.run(
        [*command, url, "shop", "resume"], check=True, capture_output=True, text=True, timeout=60
    )
    assert json.loads(last.stdout)["text"] == "Done."
    assert refunds() == 1
    assert broken(own) == []
    assert audit_holds(own)
    own.close()
