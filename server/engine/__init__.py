"""The embedded engine: a transformers model behind the part of vLLM's protocol that we use."""
