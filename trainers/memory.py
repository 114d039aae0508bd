"""Memory: how many tokens fit into a pass, and what a step does not need any more goes back to the system."""

import ctypes
import sys
from typing import Any

_M_MMAP_THRESHOLD = -3
LARGE = 1 << 20
"""Blocks of this size or more are returned to the system when they are freed."""


def return_large_blocks() -> None:
    """Have glibc map blocks of a megabyte or more by themselves, so that they are returned when they are freed.

    By itself it raises that bound to 32 MB as soon as such a block is freed, and keeps what a step's gradients needed: 1.8 GB instead of
    1.2 GB for the bundled policy, at the same speed. Other C libraries do as they do.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE)


ACTIVATIONS = 3 * 10**9
"""Bytes that the activations of one pass may take, about."""


def tokens_at_once(config: Any, *, logits: bool = False) -> int:
    """Tokens of a forward and backward pass whose activations fit: some 34 numbers of the hidden size a layer (Korthikanti and others,
    arXiv 2205.05198, without attention's squares), and with `logits` four of the vocabulary's size, all in float32. At least 256."""
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", 24)
    hidden = getattr(text, "hidden_size", 1024)
    each = 34 * layers * hidden * 4 + (16 * text.vocab_size if logits else 0)
    return max(256, int(ACTIVATIONS // each))
