"""Sets of documents with questions and answers, read from public data or made from nothing.

Knows no model, needs no torch: standard library alone. One file builds one set.
"""
