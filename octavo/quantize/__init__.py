"""`octavo quantize`: from a model folder to a compressed-tensors checkpoint, a matrix at a time."""
