"""Formats of quantised weights. A checkpoint's format becomes one of a few schemes when it is loaded (schemes.py)."""

# Values of `quant_method` in a config's quantization_config that formats.py reads.
METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "gptq", "awq", "auto-round", "bitsandbytes")
# What `quantization` may ask for: weights of 16 bits are quantised while they are loaded (pack.py).
ONLINE = ("fp8", "int8", "int4")
