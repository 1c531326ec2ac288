"""Octavo: LLM inference and serving on a paged KV cache."""
