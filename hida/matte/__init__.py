"""Which pixels of a photo belong to people: a matte."""

from hida.matte.person import NoPersonWarning, person_matte

__all__ = ["NoPersonWarning", "person_matte"]
