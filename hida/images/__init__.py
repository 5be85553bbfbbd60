"""Pictures: reading and writing, alignment, sheets."""
