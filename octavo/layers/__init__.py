"""Building blocks of models: plain objects with tensors and `__call__`, no module tree, no hooks, no autograd.

A layer allocates its weights, computes with them, and says under which checkpoint names they arrive: `names(path)`
maps a full name to the tensor (often a slice of a fused one) that the loader copies into. `finish()`, where a layer
has one, runs once when all weights are in place.
"""
