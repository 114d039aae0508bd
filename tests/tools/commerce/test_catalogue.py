"""Search by word: stemmed, over name, category and attributes, alike on both databases; and by meaning."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from stateset_agents.errors import BadInput
from stateset_agents.tools.executor import Executor
from stateset_agents.tools.shop.database import Database
from stateset_agents.tools.shop.embedding_search import Meaning
from stateset_agents.tools.shop.generate import generate
from stateset_agents.tools.tool import Session
from stateset_agents.tools.toolset import ALL_TOOLS


@pytest.fixture(params=["sqlite", "postgres"])
def shop(request: pytest.FixtureRequest) -> Any:
    if request.param == "sqlite":
        return generate(1, "train").clone()
    return request.getfixturevalue("postgres_shop")


def test_a_product_is_found_by_its_name_first(shop: Database) -> None:
    for product in shop.all("SELECT sku, item FROM products ORDER BY sku"):
        assert shop.search(product["item"], limit=3)[0] == product["sku"]


def test_words_are_stemmed_and_unknown_ones_do_not_hide(shop: Database) -> None:
    product = shop.the("SELECT sku, item FROM products ORDER BY sku")
    word = product["item"].split()[1]
    assert product["sku"] in shop.search(f"{word}s please", limit=16)


def test_category_and_material_count(shop: Database) -> None:
    rows = shop.all(
        "SELECT sku, category, attributes FROM products JOIN families ON families.id = family"
    )
    for row in rows[:4]:
        material = json.loads(row["attributes"])["material"]
        assert row["sku"] in shop.search(f"{material} {row['category']}", limit=16)


@pytest.mark.parametrize(
    "query", ["", "???", '" OR 1', "a:b & c", "NEAR(x y)", "\u00fcber*", "'; --"]
)
def test_no_query_breaks_the_search(shop: Database, query: str) -> None:
    outcome = Executor(shop, ALL_TOOLS).propose(
        Session(customer=""), "find_products", {"query": query}
    )
    assert outcome.status == "done"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of sentence-transformers, made here: each word has a direction of its own, but 'couch' that of the
    noun of shop 1's first product."""
    product = generate(1, "train").the("SELECT item FROM products ORDER BY sku")
    noun = product["item"].split()[1]
    words = ["[UNK]", noun, "couch", "please"]
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    directions = np.eye(4, 8, dtype=np.float32)
    directions[0] *= 0.1  # whatever else is said counts little
    directions[2] = directions[1]
    made = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=directions)], device="cpu"
    )
    folder = tmp_path_factory.mktemp("meaning")
    made.save(str(folder))
    return folder


def test_what_no_word_finds_is_found_by_its_meaning(shop: Database, model: Path) -> None:
    product = shop.the("SELECT sku, item FROM products ORDER BY sku")

    def items_for(query: str) -> list[str]:
        outcome = Executor(shop, ALL_TOOLS).propose(
            Session(customer=""), "find_products", {"query": query}
        )
        return [row.split()[0] for row in outcome.result["found"]]

    assert items_for("couch") == []
    shop.meaning = Meaning(model)
    assert items_for("couch")[0] == product["sku"]
    assert items_for(product["item"])[0] == product["sku"]
    assert items_for("please") == []


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing"):
        Meaning(tmp_path / "nothing")
