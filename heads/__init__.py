"""What deserves its place in the cache. Knows no document and no user interface."""
