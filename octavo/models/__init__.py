"""Models: ModelSpec from a folder's config, a decoder, one small file a family, and the strict loader."""
