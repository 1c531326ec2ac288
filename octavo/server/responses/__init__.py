"""OpenAI's Responses: /v1/responses, spoken over the chat of octavo.server.chat, and kept for a while."""
