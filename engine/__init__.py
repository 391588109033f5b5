"""Token ids in, token ids out. Knows no file format, no text, no user interface."""
