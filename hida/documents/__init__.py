"""What was written elsewhere and is read as data: JSON documents, and names in them that become names of files."""

from hida.documents.names import DocumentError, require_name, require_path, safe_name
from hida.documents.values import Value, parse_json, read_json

__all__ = ["DocumentError", "Value", "parse_json", "read_json", "require_name", "require_path", "safe_name"]
