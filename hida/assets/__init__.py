"""Weights that ship with the package; each has its model card beside it."""
