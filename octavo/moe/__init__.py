"""Mixtures of experts: which expert a token goes to, and the products of those, behind one protocol."""
