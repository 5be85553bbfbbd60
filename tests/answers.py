"""Answers of a server, without one."""

from __future__ import annotations

import email.message
import io


class Page(io.BytesIO):
    """An answer of an index: its only link leads to ``link``."""

    def __init__(self, url, link, kind="text/html", content=None):
        super().__init__(content or f'<a href="{link}">x</a>'.encode())
        self.url, self.headers = url, email.message.Message()
        self.headers["Content-Type"] = kind

    def geturl(self):
        return self.url
