"""`octavo bench`: measures a server or an engine in the words of `vllm bench`."""
