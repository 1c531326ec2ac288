"""Models that read: what a folder says of pooling, and what is put on top of a decoder or an encoder."""
