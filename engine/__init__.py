"""Token ids in, token ids out. Knows no file format, no text, no user interface."""

import os

# oneDNN keeps code for the shapes of products that it has seen, 1,024 of them, and torch a
# description of each beside it: about a megabyte a shape. The lengths of texts and heads would
# show them ever new ones. Both ask once, at their first product.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")
