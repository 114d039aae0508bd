"""Speed and proofs, run by hand."""
