"""Pictures and pairs: safe reading, alignment, FS2K, a user's own folders, the prepared set."""
