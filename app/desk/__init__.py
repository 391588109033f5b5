"""The desk: one page in the browser. Knows no model, cache or parser; watches the worker."""
