"""Rows packed into a trie: every distinct prefix goes through the model once."""
