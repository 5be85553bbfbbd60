"""The authors' released checkpoint: its layout, reading it, writing it."""
