"""Operators that only have CPU kernels and no public contract: what the networks use where it pays."""
