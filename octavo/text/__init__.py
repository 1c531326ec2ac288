"""Text in and out of the engine: tokenizers, chat templates, incremental detokenization. No torch."""
