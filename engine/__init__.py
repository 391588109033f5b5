"""Token ids in, token ids out. Knows no file format, no text, no user interface."""

import os

# oneDNN keeps code for the shapes of products that it has seen, 1,024 of them, about a megabyte
# each. Heads differ in length from chunk to chunk, so that a reading would see ever new ones. It
# asks once, at its first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
