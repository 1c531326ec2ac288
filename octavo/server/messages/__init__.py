"""Anthropic's API: /v1/messages and /v1/messages/count_tokens, spoken over the chat of octavo.server.chat."""
