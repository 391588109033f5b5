"""Scorers that need no training, one file each. Knows no trained head."""
