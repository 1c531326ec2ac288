"""Advice without an engine: what a GPU would make of a model (`plan`), what a machine can run (`doctor`)."""
