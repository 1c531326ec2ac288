"""GGUF, the format of llama.cpp: a model in one file, with its config and its tokenizer."""
