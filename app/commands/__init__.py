"""The commands, one file each. They know the terminal; the work is done elsewhere."""
