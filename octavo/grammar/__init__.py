"""Structured output: from what a user asks to which tokens may come next. See `octavo.grammar.process`."""
