"""From the text of an answer, as it comes, to content, reasoning and tool calls: one small parser a format."""
