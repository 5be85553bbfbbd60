"""hida sketch: files in, files out, one sentence for every mistake."""

import base64
import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from faces import Cone, Model
from PIL import Image
from runs import PROCESS

from hida import depth
from hida.cli.rendering import _photo_ends
from hida.cli.run import run_command
from hida.cli.sketch import main
from hida.config import Config, GeneratorConfig
from hida.drawing.sketcher import Sketcher
from hida.models import build_generator
from hida.weights import checkpoint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(depth, "face_model", lambda method="auto", device="cpu": Model())
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = Config(generator=GeneratorConfig(base_width=2))
    tensors = {f"ema.{k}": v for k, v in build_generator(config).state_dict().items()}
    checkpoint.save(tmp_path / "tiny.safetensors", checkpoint.WEIGHTS, config, {}, tensors)
    (tmp_path / "photos").mkdir()
    values = np.random.default_rng(1).integers(1, 256, (250, 250, 3), np.uint8)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(values).save(tmp_path / "photos" / name)
    return tmp_path


def run(*words):
    return run_command(main, [*map(str, words), "--weights", "tiny.safetensors", "--device", "cpu"])


def test_every_style_is_drawn_and_the_sheet_shows_them(folder, capsys):
    assert run("photos/a.png", "--sheet") == 0
    names = sorted(path.name for path in (folder / "sketches").iterdir())
    assert names == ["a_sheet.png", "a_style1.png", "a_style2.png", "a_style3.png"]
    assert capsys.readouterr().out.split() == [f"sketches/{n}" for n in (*names[1:], names[0])]
    sheet = Image.open(folder / "sketches" / "a_sheet.png")
    assert 4 * 250 < sheet.width < 5 * 250  # photo and styles
    assert run("photos/a.png", "--sheet", "--show-depth", "--style", 2) == 0
    with_depth = Image.open(folder / "sketches" / "a_sheet.png")
    assert 3 * 250 < with_depth.width < 4 * 250


def test_a_folder_and_chosen_styles(folder):
    assert run("photos", "--style", 3, 1, "--out", "x/y") == 0
    names = sorted(path.name for path in (folder / "x" / "y").iterdir())
    assert names == ["a_style1.png", "a_style3.png", "b_style1.png", "b_style3.png"]


@pytest.mark.parametrize(
    ("words", "drawn"),
    [
        (["--style", "1", "photos/a.png"], ["a_style1"]),
        (["--style", "1:0.6,3:0.4", "2", "photos"], ["a_style1-60_3-40", "a_style2", "b_style1-60_3-40", "b_style2"]),
        (["photos/b.jpg", "--style", "3", "photos/a.png"], ["a_style3", "b_style3"]),
        (["--style", "2", "photos/a.png", "photos/b.jpg", "--frame", "whole"], ["a_style2", "b_style2"]),
    ],
)
def test_photos_may_follow_the_styles(folder, words, drawn):
    assert run(*words) == 0
    assert sorted(path.stem for path in (folder / "sketches").iterdir()) == drawn


def test_mixtures_sweeps_and_regions(folder):
    Image.fromarray(np.full((9, 9, 3), (255, 0, 80), np.uint8)).save(folder / "mask.png")
    assert run("photos/a.png", "--style", "1:0.5,3:0.5", 2, "--sweep", 1, 3, "--steps", 5, "--sheet") == 0
    assert run("photos/a.png", "--style-map", "mask.png") == 0
    names = sorted(path.name for path in (folder / "sketches").iterdir())
    assert names == ["a_regions.png", "a_sheet.png", "a_style1-50_3-50.png", "a_style2.png", "a_sweep.png"]
    widths = [Image.open(folder / "sketches" / f"a_{name}.png").width // 250 for name in ("sheet", "sweep")]
    assert widths == [3, 6]  # photo and two styles; photo and five steps


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["photos", "--style", "7"], "there is no style 7; these weights have styles 1 to 3"),
        (["photos/a.png", "--style", "1:0.5,9:0.5"], "there is no style 9"),
        (["photos/a.png", "--style", "x"], "--style 'x'"),
        (["photos/a.png", "--style", "1:1", "1:2"], "twice"),
        (["photos/a.png", "--style", "1", "pencil"], "--style 'pencil' is neither"),
        (["--style", "photos/a.png"], "--style 'photos/a.png' is neither"),
        (["--style", "1", "nothere.jpg"], "'nothere.jpg' cannot be read"),
        (["photos/a.png", "--sweep", "1", "1"], "two different styles"),
        (["photos/a.png", "--steps", "3"], "--steps has no effect"),
        (["photos/a.png", "--show-depth"], "--show-depth has no effect without --sheet"),
        (["photos/a.png", "--sheet", "--sweep", "1", "2"], "add --style, or leave out --sheet"),
        (["photos/a.png", "--gallery", "--out", "one.png"], "--out one.png is not; give a folder"),
        (["photos/a.png", "--gallery", "--out", "-"], "--out - is not; give a folder"),
        (["photos/a.png", "--gallery", "--out", "taken"], "'taken/gallery.html' is a folder"),
        (["photos/a.png", "--style-map", "photos/a.png", "--style", "1"], "--style-map gives every region its style"),
        (["photos/a.png", "--style-map", "black.png"], "style numbers, 1 to 3"),
        *[
            (["photos/a.png", "--faces", word], f"faces is {told}; give")
            for word, told in (("both", "'both'"), ("0", 0))
        ],
        (["photos/a.png", "--size", "400"], "size is a portrait's and has no effect with frame 'auto'"),
        (
            ["photos/a.png", "--size", "9", "--frame", "portrait"],
            "size is 9; give a portrait's height in pixels, 64 to",
        ),
        (["photos/a.png", "--tone", "5"], "tone is 5.0; give a number from 0 to 3"),
        (["photos/a.png", "--line", "-1"], "line is -1.0; give a number from 0 to 3"),
        (["photos/a.png", "--paper", "nocolour"], "paper is 'nocolour'"),
        (["nothere.jpg"], "nothere.jpg"),
        (["empty"], "holds no pictures"),
        (["text.jpg"], "text.jpg"),
        (["black.png"], "no face"),
        (["photos", "--depth", "photos/a.png"], "one map for 2 photos"),
        (["photos", "--depth", "bultin"], "no depth method and no file 'bultin'; did you mean builtin?"),
        (["photos", "--depth", "midas"], "the depth method midas needs a network"),
        (["photos", "--style", "1,3"], "give 1 3, with spaces, to draw each"),
        (["photos", "--style", "1", "--style=3"], "--style is given twice; give it once, with all styles"),
        (["photos", "--paper", "f4ecd8"], "did you mean #f4ecd8?"),
        (["photos", "--style-map", "text.jpg"], "'text.jpg' is not a picture in a known format"),
        (["photos", "--style-map", "nothere.png"], "'nothere.png' cannot be read"),
        (["photos", "--style-map", "photos/a.png"], "the style map 'photos/a.png' looks like a photo"),
        (["photos/a.png", "--depth", "no.png"], "no.png"),
        (["photos/a.png", "--device", "cuda:9"], "no device"),
        (["photos/a.png", "other/a.png", "photos-a.png"], "would both be written"),
        (["photos/a.png", "--weights", "text.jpg"], "text.jpg"),
        (["photos/a.png", "--weights", "absent.safetensors"], "absent.safetensors"),
        (["photos/a.png", "--weights", "nosuch"], "no weights named 'nosuch'"),
        (["photos/a.png", "--weights", "empty"], "no whole checkpoint"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(folder, capsys, words, sentence):
    (folder / "empty").mkdir()
    (folder / "taken" / "gallery.html").mkdir(parents=True)
    (folder / "other").mkdir()
    (folder / "text.jpg").write_text("no picture", encoding="utf-8")
    Image.new("RGB", (40, 40)).save(folder / "black.png")
    Image.new("RGB", (40, 40), "red").save(folder / "other" / "a.png")
    assert run_command(main, ["--weights", "tiny.safetensors", "--device", "cpu", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (folder / "sketches").exists()


@pytest.mark.parametrize("frame", ["portrait", "face"])
def test_portraits_have_a_size_of_their_own(folder, frame):
    assert run("photos/a.png", "--style", 1, "--frame", frame, "--size", 300) == 0
    assert Image.open(folder / "sketches" / "a_style1.png").size == (240, 300)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ["hida: 3 faces found, 2 drawn, the other as a part of its surroundings"]),
        (
            ["--faces", "largest"],
            ["hida: 3 faces found, 1 drawn, the others as a part of their surroundings"],
        ),
        (["--frame", "whole"], []),
    ],
)
def test_the_number_of_faces_is_said_once_where_there_are_several(folder, capsys, monkeypatch, words, said):
    group = [Cone((60, 60, 190, 220), 0.9), Cone((10, 10, 40, 40), 0.9), Cone((0, 0, 15, 15), 0.9)]
    monkeypatch.setattr(Model, "group", lambda self, photo: group)
    assert run("photos/a.png", "--style", 1, 2, *words) == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == said
    assert told.out.split() == ["sketches/a_style1.png", "sketches/a_style2.png"]
    assert run("photos", "--style", 1, "--frame", "whole") == 0


def test_people_cut_out_and_coloured_paper(folder):
    words = ("--style", 1, "--background", "transparent", "--out")
    assert run("photos/a.png", *words, "cut") == run("photos/a.png", *words, "warm", "--paper", "#f4ecd8") == 0
    assert Image.open(folder / "cut" / "a_style1.png").mode == "LA"
    with Image.open(folder / "warm" / "a_style1.png") as warm:
        assert warm.mode == "RGBA"
        assert warm.getpixel((0, 0)) == (0xF4, 0xEC, 0xD8, 0)


def test_one_bad_photo_does_not_stop_the_others(folder, capsys):
    (folder / "photos" / "c.jpg").write_bytes((folder / "photos" / "b.jpg").read_bytes()[:900])
    assert run("photos", "--style", 1) == 2
    error = capsys.readouterr().err
    assert "c.jpg" in error
    assert "1 of 3 photos could not be drawn" in error
    assert sorted(p.name for p in (folder / "sketches").iterdir()) == ["a_style1.png", "b_style1.png"]


def test_a_gallery_has_every_photo_once_drawn_and_says_why_others_are_not(folder, capsys, monkeypatch):
    original, drawn = Sketcher.draw, []
    monkeypatch.setattr(Sketcher, "draw", lambda self, *a, **k: (drawn.append(a[0].size), original(self, *a, **k))[1])
    os.rename(folder / "photos" / "b.jpg", folder / "photos" / "<script>.jpg")
    (folder / "photos" / "c.jpg").write_bytes((folder / "photos" / "<script>.jpg").read_bytes()[:900])
    assert run("photos", "--style", 1, 3, "--gallery") == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == ["4 pictures of 2 photos in sketches", "sketches/gallery.html"]
    assert len(drawn) == 2  # nothing again for the page
    text = (folder / "sketches" / "gallery.html").read_text(encoding="utf-8")
    assert text.count("<script>") == 1  # its own
    assert [text.count(f'<figure aria-label="{name}.jpg') for name in ("&lt;script&gt;", "c")] == [1, 0]
    assert "<li><strong>c.jpg</strong>: &#x27;c.jpg&#x27; is truncated" in text
    assert run("photos/c.jpg", "photos/c.jpg", "--gallery", "--out", "none") == 2
    assert not (folder / "none").exists()


def test_a_gallery_shows_what_is_there_and_only_the_rest_is_drawn(folder, capsys, monkeypatch):
    words = ("--style", 1, 3, "--gallery", "--skip-existing")
    assert run("photos/a.png", *words) == 0
    files = {path: path.read_bytes() for path in (folder / "sketches").glob("a_*.png")}
    Image.new("L", (250, 250), 77).save(folder / "sketches" / "a_style3.png")  # as if another had drawn it
    original, drawn = Sketcher.draw, []
    monkeypatch.setattr(Sketcher, "draw", lambda self, *a, **k: (drawn.append(a[0].size), original(self, *a, **k))[1])
    capsys.readouterr()
    assert run("photos", *words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 pictures of 1 photo in sketches, where those of 1 photo were already", "sketches/gallery.html",
    ]  # fmt: skip
    assert len(drawn) == 1
    text = (folder / "sketches" / "gallery.html").read_text(encoding="utf-8")
    sources = dict(
        re.findall(r'alt="Sketch of ([^"]+)" width="250" height="250" src="data:image/jpeg;base64,([^"]+)"', text)
    )
    assert list(sources) == ["a.png, style 1", "a.png, style 3", "b.jpg, style 1", "b.jpg, style 3"]
    levels = {name: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).mean() for name, data in sources.items()}
    assert abs(levels["a.png, style 3"] - 77) < 1
    assert run("photos", *words, "--frame", "portrait") == 0
    assert "nothing to draw: the files of 2 photos are in sketches already (" in capsys.readouterr().out
    assert len(drawn) == 1
    (folder / "sketches" / "a_style3.png").write_bytes(b"torn")
    assert run("photos", *words) == 0
    assert len(drawn) == 2  # what is no picture is drawn again
    assert {path: path.read_bytes() for path in files} == files
    os.rename("sketches/gallery.html", "sketches/b_sweep.png")
    assert run("photos/b.jpg", *words, "--sweep", 1, 3, "--steps", 2) == 0
    assert len(drawn) == 3
    assert "note: all are drawn again" in capsys.readouterr().err


def test_a_portrait_that_reaches_beyond_the_photo_says_so(folder, capsys):
    assert run("photos/a.png", "--style", 1, "--frame", "portrait") == 0
    # The eyes are 57.5 pixels apart: a portrait is 221 wide and 276 high at least, and the photo 250 by 250.
    told = "hida: the photo ends inside the portrait, which fades into paper at the top and at the bottom; --frame"
    assert capsys.readouterr().err.startswith(told)
    places = ([[2.0, 0, x], [0, 2.0, y]] for x, y in ((0, 0), (9, 0), (-30, -50)))
    ends = [_photo_ends(np.array(place), (100, 100), (60, 60)) for place in places]
    assert ends == ["", "on the left", "on the right and at the bottom"]


def test_a_gallery_shows_a_sweep_and_regions_too(folder):
    Image.fromarray(np.full((9, 9, 3), (255, 0, 80), np.uint8)).save(folder / "mask.png")
    page = folder / "sketches" / "gallery.html"
    assert run("photos/a.png", "--sweep", 1, 3, "--steps", 3, "--style", 1, "--gallery") == 0
    assert re.findall(r'alt="Sketch of a.png, ([^"]+)"', page.read_text(encoding="utf-8")) == [
        "style 1", "50 % 1, 50 % 3", "style 3",
    ]  # fmt: skip
    assert run("photos/a.png", "--style-map", "mask.png", "--gallery") == 0
    text = page.read_text(encoding="utf-8")
    assert "Sketch of a.png, styles by region" in text
    assert "<button" not in text


def test_a_photo_is_never_overwritten(folder, capsys):
    Image.new("RGB", (40, 40), "red").save(folder / "photos" / "a_style1.png")
    assert run("photos/a.png", "photos/a_style1.png", "--style", 1, "--out", "photos") == 2
    assert "is one of the photos" in capsys.readouterr().err
    assert Image.open(folder / "photos" / "a_style1.png").size == (40, 40)


@pytest.mark.slow
def test_a_process_that_draws_loads_no_compiler_and_its_threads_wait_asleep(folder):
    """What torch's compiler takes is a second and 150 MB; OpenMP itself says how its threads wait."""
    code = (
        "import sys\n"
        "from hida.cli.main import entry\n"
        "assert entry() == 0\n"
        "heavy = 'torch._dynamo torch._inductor triton sympy mpmath scipy lpips matplotlib tensorboard rich'.split()\n"
        "sys.exit(' '.join(name for name in heavy if name in sys.modules) or 0)\n"
    )
    words = ["sketch", "photos/a.png", "--depth", "builtin", "--frame", "whole", "--weights", "tiny.safetensors"]
    environment = {name: value for name, value in PROCESS.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**environment, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a_style3.png" in done.stdout
    assert "OMP_WAIT_POLICY" not in done.stderr or "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr


class Piped:
    """Standard input or output that is no terminal, as a process has it."""

    def __init__(self, data=b""):
        self.buffer = io.BytesIO(data)

    def isatty(self):
        return False

    def write(self, text):
        self.buffer.write(text.encode())

    def flush(self):
        pass


def test_photos_come_by_standard_input_and_in_one_stem(folder, monkeypatch):
    data = (folder / "photos" / "a.png").read_bytes()
    Image.open(folder / "photos" / "a.png").save(folder / "photos" / "a.webp", lossless=True)
    for words in (["-", "photos", "--style", "1"], ["--style", "1", "-"], ["photos", "--style", "1", "-"]):
        monkeypatch.setattr("sys.stdin", Piped(data))
        assert run(*words) == 0
    sketches = {path.name: path.read_bytes() for path in (folder / "sketches").iterdir()}
    assert sorted(sketches) == ["a.png_style1.png", "a.webp_style1.png", "b_style1.png", "stdin_style1.png"]
    assert len({sketches[f"{name}_style1.png"] for name in ("a.png", "a.webp", "stdin")}) == 1


def test_one_drawing_goes_into_a_file_or_to_standard_output(folder, capsys, monkeypatch):
    assert run("photos/a.png", "--style", 2, "--out", "new/me.png") == 0
    assert capsys.readouterr().out == "new/me.png\n"
    wanted = (folder / "new" / "me.png").read_bytes()
    for kind, words in (
        ("PNG", []),
        ("JPEG", ["--format", "jpeg"]),
        ("JPEG", ["--format", "jpg"]),
        ("WEBP", ["--format", "webp"]),
    ):
        out = Piped()
        monkeypatch.setattr("sys.stdout", out)
        assert run("photos/a.png", "--style", 2, "--out", "-", *words) == 0
        assert Image.open(io.BytesIO(out.buffer.getvalue())).format == kind
        assert kind != "PNG" or out.buffer.getvalue() == wanted  # and nothing else
    assert sorted(path.name for path in folder.iterdir()) == ["new", "photos", "tiny.safetensors"]


def test_a_folder_has_the_format_that_is_asked_for(folder):
    pytest.importorskip("contourpy")
    for kind in ("jpeg", "webp", "svg"):
        assert run("photos/a.png", "--style", 1, "--sheet", "--format", kind, "--out", kind) == 0
    found = {path.relative_to(folder).as_posix() for k in ("jpeg", "webp", "svg") for path in (folder / k).iterdir()}
    assert found == {
        "jpeg/a_style1.jpg", "jpeg/a_sheet.jpg", "webp/a_style1.webp", "webp/a_sheet.webp", "svg/a_style1.svg",
        "svg/a_sheet.png",
    }  # fmt: skip
    assert (folder / "svg" / "a_style1.svg").read_text(encoding="utf-8").startswith("<svg ")


def test_what_is_there_is_not_drawn_again(folder, capsys):
    assert run("photos/a.png", "--style", 1) == 0
    (folder / "photos" / "a.png").write_bytes(b"no longer a picture")
    capsys.readouterr()
    assert run("photos", "--style", 1, "--skip-existing") == 0
    assert capsys.readouterr().out == "1 picture of 1 photo in sketches, where those of 1 photo were already\n"
    assert run("photos", "--style", 1, "--skip-existing") == 0
    assert "nothing to draw" in capsys.readouterr().out
    assert run("photos", "--style", 1, 2, "--skip-existing") == 2  # a drawing of it is missing


@pytest.mark.slow
def test_side_by_side_the_files_are_those_of_one_by_one(folder, capsys):
    (folder / "photos" / "c.jpg").write_bytes(b"no picture")
    words = ("photos", "--style", 1, 2, "--sweep", 1, 2, "--depth", "none", "--frame", "whole")
    assert run(*words, "--out", "one") == run(*words, "--out", "two", "--jobs", 2) == 2
    one, two = ({path.name: path.read_bytes() for path in (folder / name).iterdir()} for name in ("one", "two"))
    assert len(one) == 6
    assert one == two
    said = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("hida: ")]
    assert sum("'photos/c.jpg' is not a picture" in line for line in said) == 2


def test_where_it_goes_is_checked_before_the_weights_are_loaded(folder, capsys, monkeypatch):
    monkeypatch.setattr("hida.drawing.sketcher.Sketcher.from_pretrained", lambda *_: pytest.fail("it was loaded"))
    for words, sentence in (
        (["--out", "me.png"], "one file for 3 drawings of one photo; give one style, such as --style 1"),
        (["--out", "x.bmp"], "ends in '.bmp'"),
        (["--out", "tiny.safetensors/x"], "there is a file where a folder was expected"),
        (["--style", "1", "--out", "photos/a.png"], "photos/a.png is one of the photos"),
        (["--style", "1", "--depth", "photos/b.jpg", "--out", "photos/b.jpg"], "photos/b.jpg is one of the photos or"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--format", "gif"], "'gif' is none of"),
        (["--style", "1", "--out", "-", "--skip-existing"], "--skip-existing has no effect"),
    ):
        assert run("photos/a.png", *words) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["photos", "tiny.safetensors"]
