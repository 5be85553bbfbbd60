"""Files and folders that are written: whole or absent, by one process at a time, where they can be."""

from hida.files.locks import folder_lock
from hida.files.naming import told_apart
from hida.files.places import require_file_place, require_folder_place
from hida.files.writing import (
    atomic_path,
    cut,
    is_ours,
    make_usual,
    named_as,
    remove_leftovers,
    temporary_folder,
    write_bytes,
    write_json,
)

__all__ = [
    "atomic_path",
    "cut",
    "folder_lock",
    "is_ours",
    "make_usual",
    "named_as",
    "remove_leftovers",
    "require_file_place",
    "require_folder_place",
    "temporary_folder",
    "told_apart",
    "write_bytes",
    "write_json",
]
