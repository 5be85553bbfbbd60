"""The page of photos and sketches: whole in itself, safe with any name, of bounded size, for every input device."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hida.images import gallery
from hida.images.gallery import BUDGET, SIDE, SMALLEST, Gallery, page, reduce


class Elements(HTMLParser):
    """Every element of a page with its attributes, and its text by the element that it is in."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("img", "meta", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag  # properly nested

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1], data))

    def all(self, tag, **attributes):
        return [a for name, a in self.found if name == tag and attributes.items() <= a.items()]


def noise(size, mode="RGB", seed=0):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def decoded(uri):
    kind, data = re.fullmatch(r"data:image/(jpeg|png);base64,(.*)", uri).groups()
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert picture.format.lower() == kind
    return picture


def build(tmp_path, names=("a.jpg", "b.jpg"), failures=(), styles=("style 1", "style 2")):
    photos = [Path("photos") / name for name in (*names, *dict(failures))]
    made = Gallery(photos)
    for k, photo in enumerate(photos[: len(names)]):
        sketches = {style: noise((60, 40), "L") for style in styles}
        made.add(photo, reduce(noise((60, 40), seed=k), sketches, made.share))
    made.write(tmp_path / "gallery.html", {Path("photos") / name: reason for name, reason in dict(failures).items()})
    return (tmp_path / "gallery.html").read_text(encoding="utf-8")


def test_each_photo_has_its_pictures_a_slider_and_buttons(tmp_path):
    tree = Elements(build(tmp_path))
    assert [text for tag, text in tree.texts if tag == "h2"] == ["a.jpg", "b.jpg"]
    assert [image["alt"] for image in tree.all("img")] == [
        text.format(name)
        for name in ("a.jpg", "b.jpg")
        for text in ("Photo {}", "Sketch of {}, style 1", "Sketch of {}, style 2")
    ]
    for image in tree.all("img"):
        assert decoded(image["src"]).size == (60, 40) == (int(image["width"]), int(image["height"]))
    assert [image["class"] for image in tree.all("img")] == ["photo", "sketch chosen", "sketch"] * 2
    sliders = tree.all("input", type="range", min="0", max="100", value="50")
    assert [slider["aria-label"] for slider in sliders] == ["Photo and sketch of a.jpg", "Photo and sketch of b.jpg"]
    groups = [group["aria-label"] for group in tree.all("div", role="group")]
    assert groups == ["Style of all photos", "Style of a.jpg", "Style of b.jpg"]
    assert [button["aria-pressed"] for button in tree.all("button")] == ["true", "false"] * 3
    assert tree.all("html", lang="en")


def test_one_style_needs_no_buttons_and_one_photo_none_for_all(tmp_path):
    assert not Elements(build(tmp_path, styles=("style 3",))).all("button")
    groups = Elements(build(tmp_path, names=("a.jpg",))).all("div", role="group")
    assert [group["aria-label"] for group in groups] == ["Style of a.jpg"]


def test_nothing_is_loaded_from_elsewhere_and_only_its_own_script_may_run(tmp_path):
    text = build(tmp_path)
    tree = Elements(text)
    assert not re.search(r"https?:|@import|url\(", text)
    assert not [tag for tag, attributes in tree.found if "href" in attributes or tag in ("link", "iframe", "base")]
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in tree.all("img"))
    policy = next(meta["content"] for meta in tree.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<script>alert(1)<.jpg", "<script>alert(1)<.jpg"),
        ("\"><img src=x onerror=alert(1)>'&amp;.jpg", "\"><img src=x onerror=alert(1)>'&amp;.jpg"),
        ("$title ${script} {x}%s\\1.jpg", "$title ${script} {x}%s\\1.jpg"),
        ("a\u202egpj\x1b.jpg", "a\\u202egpj\\x1b.jpg"),
        ("b\udce9.jpg", "b\\udce9.jpg"),
        ("画é.jpg", "画é.jpg"),
    ],
)
def test_a_name_is_text_and_nothing_else(tmp_path, name, shown):
    tree = Elements(build(tmp_path, names=(name,), failures=[("x" + name, f"'photos/x{name}' is <b>broken</b>.")]))
    assert ("h2", shown) in tree.texts
    assert ("strong", "x" + shown) in tree.texts
    assert ("li", f": 'x{shown}' is <b>broken</b>.") in tree.texts  # without the folder
    assert len(tree.all("img")) == 3
    assert len(tree.all("script")) == 1
    assert not tree.all("b")
    assert not [a for _, a in tree.found if "onerror" in a]


def test_photos_are_in_their_order_and_failed_ones_only_listed(tmp_path):
    photos = [Path(name) for name in ("1.jpg", "2.jpg", "3.jpg")]
    made = Gallery(photos)
    for photo in reversed(photos):
        made.add(photo, reduce(noise((8, 8)), {"style 1": noise((8, 8), "L")}, made.share))
    made.write(tmp_path / "x.html", {photos[1]: "2.jpg: the disk is full."})
    texts = Elements((tmp_path / "x.html").read_text(encoding="utf-8")).texts
    assert [text for tag, text in texts if tag == "h2"] == ["1.jpg", "3.jpg", "Not drawn"]
    assert ("h1", "Sketches of 2 photos") in texts


def test_pictures_are_reduced_to_their_share():
    photo, sketch = noise((1500, 1000)), noise((1500, 1000), "L")  # noise is what takes the most bytes
    large = reduce(photo, {"style 1": sketch}, share=10**9)
    assert large.size == (SIDE, round(SIDE * 2 / 3))
    assert decoded(large.photo).mode == "RGB"
    assert decoded(large.sketches["style 1"]).mode == "L"
    small = reduce(photo, {"style 1": sketch}, share=100_000)
    assert SMALLEST < small.size[0] < SIDE
    assert 30_000 < len(small.photo) + len(small.sketches["style 1"]) <= 100_000
    assert reduce(photo, {"style 1": sketch}, share=1).size[0] == SMALLEST
    assert reduce(noise((40, 90)), {}, share=1).size == (40, 90)  # never enlarged


def test_a_page_keeps_to_its_size_with_many_photos(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "BUDGET", 300_000)
    made = Gallery([Path(f"{k}.jpg") for k in range(5)])
    picture, sketches = noise((400, 400)), {"style 1": noise((400, 400), "L")}
    for photo in made.photos:
        made.add(photo, reduce(picture, sketches, made.share))
    made.write(tmp_path / "x.html", {})
    assert 80_000 < (tmp_path / "x.html").stat().st_size <= 300_000
    assert BUDGET <= 18_000_000  # mail makes a third more of it; most servers take 25 MB


def test_a_photo_of_another_shape_is_put_into_the_sketches_shape_on_white():
    one = reduce(Image.new("RGB", (300, 100)), {"style 1": Image.new("L", (100, 100))}, 10**6)
    assert one.size == (100, 100)
    photo = np.asarray(decoded(one.photo))
    assert photo[50].max() < 20
    assert photo[10].min() > 235


def test_what_is_transparent_is_paper():
    one = reduce(Image.new("RGBA", (32, 32)), {"style 1": Image.new("LA", (32, 32))}, 10**6)
    assert np.asarray(decoded(one.photo)).min() == 255
    assert np.asarray(decoded(one.sketches["style 1"])).min() == 255


def test_an_older_page_stays_if_writing_fails(tmp_path, monkeypatch):
    (tmp_path / "gallery.html").write_text("old", encoding="utf-8")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        build(tmp_path)
    assert [(p.name, p.read_text(encoding="utf-8")) for p in tmp_path.iterdir()] == [("gallery.html", "old")]


def test_an_empty_page_is_a_page():
    assert ("h1", "Sketches of 0 photos") in Elements(page([], [])).texts


def test_photos_of_one_name_are_told_apart_by_their_folders(tmp_path):
    photos = [Path("photos/mum/c.jpg"), Path("photos/dad/c.jpg"), Path("photos/dad/d.jpg"), Path("-")]
    made = Gallery(photos)
    for photo in (photos[0], photos[2], photos[3]):
        made.add(photo, reduce(noise((40, 30)), {"style 1": noise((40, 30), "L")}, made.share))
    made.write(tmp_path / "page.html", {photos[1]: "'photos/dad/c.jpg' is torn-off."})
    elements = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [text for tag, text in elements.texts if tag == "h2"][:3] == ["mum/c.jpg", "d.jpg", "stdin"]
    assert [text for tag, text in elements.texts if tag in ("strong", "li")] == [
        "dad/c.jpg",
        ": 'dad/c.jpg' is torn-off.",
    ]
