"""Pairs of photo and sketch: FS2K, a user's own folders, the prepared set, its pack, and batches of it."""
