"""One reader per file; each turns bytes of its kind into parts.Parsed and knows nothing else."""
