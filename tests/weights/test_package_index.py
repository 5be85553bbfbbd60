"""Package indices: where a password goes, and how much of an answer is taken."""

from __future__ import annotations

import http.server
import threading

import pytest
from answers import Page

from hida.errors import HidaError
from hida.weights import package_index as registry

ELSEWHERE = {
    "/files/x.whl": "https://u:p@host/files/x.whl",
    "https://host/x.whl": "https://u:p@host/x.whl",
    "https://host:443/x.whl": "https://u:p@host:443/x.whl",
    "https://HOST/x.whl": "https://u:p@HOST/x.whl",
    "https://host:8443/x.whl": None,
    "http://host/x.whl": None,
    "http://host:443/x.whl": None,
    "https://files.host/x.whl": None,
    "https://host.evil/x.whl": None,
    "//other/x.whl": None,
}


@pytest.mark.parametrize(("link", "expected"), ELSEWHERE.items())
def test_a_password_goes_to_the_same_scheme_host_and_port_only(monkeypatch, link, expected):
    page = "https://u:p@host/simple/x/"
    monkeypatch.setattr(registry, "_open", lambda url, *_, **__: Page("https://host/simple/x/", link))
    found = registry._find_file(page, "x.whl", None)
    assert found == expected if expected else "u:p" not in found
    assert found.endswith("x.whl")


@pytest.mark.parametrize("moved", ["https://host:8443/simple/x/", "http://host/simple/x/", "https://other/simple/x/"])
def test_a_password_does_not_follow_a_page_that_has_moved(monkeypatch, moved):
    monkeypatch.setattr(registry, "_open", lambda url, *_, **__: Page(moved, "x.whl"))
    assert registry._find_file("https://u:p@host/simple/x/", "x.whl", None) == f"{moved}x.whl"


@pytest.mark.parametrize("link", ["file:///etc/x.whl", "ftp://host/x.whl", "javascript:/x.whl"])
def test_a_page_leads_to_no_other_kind_of_address(monkeypatch, link):
    monkeypatch.setattr(registry, "_open", lambda url, *_, **__: Page("https://host/simple/x/", link))
    with pytest.raises(ValueError, match="leads to an address of the kind"):
        registry._find_file("https://host/simple/x/", "x.whl", None)


@pytest.mark.parametrize("target", ["ftp://127.0.0.1:9/x", "file:///etc/passwd", "/moved"])
def test_an_answer_leads_to_no_other_kind_of_address(tmp_path, target):
    class Moving(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302 if self.path == "/x" else 200)
            self.send_header("Location", target)
            self.end_headers()
            self.wfile.write(b"content")

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Moving) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/x"
        try:
            if target == "/moved":
                registry.download(address, tmp_path / "x", "x")
                assert (tmp_path / "x").read_bytes() == b"content"
            else:
                with pytest.raises(HidaError, match=f"address of the kind {target[:3]}|Redirection to url"):
                    registry.download(address, tmp_path / "x", "x")
                assert not (tmp_path / "x").exists()
        finally:
            server.shutdown()


def test_a_page_without_end_is_not_read_to_it(monkeypatch):
    monkeypatch.setattr(registry, "_LARGEST_PAGE", 1000)
    monkeypatch.setattr(registry, "_open", lambda url, *_, **__: Page(url, "", content=b"x" * 2000))
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        registry._find_file("https://host/simple/x/", "x.whl", None)


@pytest.mark.parametrize("announced", [True, False])
def test_no_more_is_taken_than_is_expected(tmp_path, monkeypatch, announced):
    taken = []

    class Counted(Page):
        def read(self, size=-1):
            taken.append(len(data := super().read(size)))
            return data

    answer = Counted("https://host/x", "", content=b"x" * (5 << 20))
    if announced:
        answer.headers["Content-Length"] = str(5 << 20)
    monkeypatch.setattr(registry, "_open", lambda *_, **__: answer)
    with pytest.raises(HidaError, match="not the expected file: it has more than 1,000 bytes"):
        registry.download("https://host/x", tmp_path / "x", "x", size=1000)
    assert sum(taken) <= (0 if announced else 1 << 20)
