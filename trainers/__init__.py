"""Training: from exact rows to a better adapter, and the seed policy's pre-training."""
