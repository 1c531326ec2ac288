"""OpenAI's files and batches: requests from a file, answers into a file, over HTTP or with `octavo run-batch`."""
