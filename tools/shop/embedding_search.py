"""Search by meaning: an embedding model of sentence-transformers, besides the search by words. Extra: `meaning`.

    shop.meaning = Meaning("sentence-transformers/all-MiniLM-L6-v2")     # or a folder
    find_products("couch")  ->  "P14 oak sofa 240.00"

Both searches give a ranking; reciprocal ranks add up (Cormack, Clarke and Buettcher, 2009), so that a product found
by both comes first and one found by either is not lost.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stateset_agents.errors import BadInput

K = 60
"""The constant of reciprocal rank fusion, as published."""


class Meaning:
    """Ranks texts by the cosine of their embedding with a query's. Texts are embedded once."""

    def __init__(self, model: str | Path, *, floor: float = 0.25) -> None:
        """A model's name or folder, and the least cosine of a match. Raises BadInput if the package or the model is missing."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise BadInput(
                "Expected the package sentence-transformers, found none: install the extra 'meaning'."
            ) from None
        try:
            self._model = SentenceTransformer(str(model), device="cpu")
        except (OSError, ValueError) as error:
            raise BadInput(
                f"Expected an embedding model at {str(model)!r}, found: {str(error)[:200]}"
            ) from None
        self._floor = floor
        self._vectors: dict[str, list[float]] = {}

    def rank(self, query: str, texts: Mapping[str, str]) -> list[str]:
        """Keys of matching `texts`, the nearest first."""
        new = [text for text in dict.fromkeys(texts.values()) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, self._embedded(new), strict=True))
        (wanted,) = self._embedded([query])

        near = {
            key: sum(a * b for a, b in zip(wanted, self._vectors[text], strict=True))
            for key, text in texts.items()
        }
        return sorted((k for k in texts if near[k] >= self._floor), key=lambda k: (-near[k], k))

    def _embedded(self, texts: Sequence[str]) -> list[list[float]]:
        vectors = self._model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False
        )
        return [[float(x) for x in row] for row in vectors]


def fused(*rankings: Sequence[str]) -> list[str]:
    """Fuse rankings into one.

    >>> fused(["a", "b"], ["c", "b"])
    ['b', 'a', 'c']
    """
    score: dict[str, float] = {}
    for ranking in rankings:
        for place, key in enumerate(ranking, start=1):
            score[key] = score.get(key, 0.0) + 1 / (K + place)
    return sorted(score, key=lambda key: (-score[key], key))
