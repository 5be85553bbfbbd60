"""Benchmarks of the native ops, the network and the training iteration; bench/gpu proves and measures on a GPU machine.

Every module that is a command runs as a script (``python bench/ops.py``) and as a module (``python -m bench.ops``): a
script's first lines append the repository's root to the search path. They append, so that an installed ``hida``, with
the native ops that were built into it, is measured rather than the checkout beside this folder.
"""
