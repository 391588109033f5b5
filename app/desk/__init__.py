"""The desk: one page in the browser. It does not know models, caches or parsers; it watches the worker."""
