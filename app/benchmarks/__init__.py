"""What reading, answering and returning cost, each figure beside its ceiling or its rival.

Knows the engine and the scorers; knows no library, no desk and no document. Every benchmark is one
file with `measure(bench) -> dict`, how it is drawn and how it is told; no figure leaves it unless
`parity` holds.
"""
