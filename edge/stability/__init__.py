"""XNorm in the exported graph: where it is, and what reduced precision would do to it."""
