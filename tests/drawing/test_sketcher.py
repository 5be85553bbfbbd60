"""Sketcher: what goes in, what comes out, and what it says when it cannot."""

import numpy as np
import pytest
import torch
from faces import Cone, Model
from PIL import Image

import hida
from hida import depth
from hida.config import AugmentConfig, Config, GeneratorConfig
from hida.drawing.sketcher import NoFaceError, Sketcher, _bytes
from hida.errors import HidaError
from hida.images.alignment import TEMPLATE, placement, warp
from hida.models import build_generator
from hida.weights import checkpoint


@pytest.fixture
def sketcher(monkeypatch):
    monkeypatch.setattr(depth, "face_model", lambda method="auto", device="cpu": Model())
    torch.manual_seed(0)
    config = Config(generator=GeneratorConfig(base_width=4), augment=AugmentConfig(fill_photo="replicate"))
    return Sketcher(build_generator(config), config)


@pytest.fixture
def photo():
    values = np.random.default_rng(1).integers(1, 256, (250, 250, 3), np.uint8)
    return Image.fromarray(values)


def test_the_sketch_is_grey_and_has_the_size_of_the_photo(sketcher, photo):
    for size in ((250, 250), (300, 411), (97, 64)):
        sketch = sketcher(photo.resize(size), style=2)
        assert sketch.mode == "L"
        assert sketch.size == size


def test_one_view_equals_the_generator_called_by_hand(sketcher, photo):
    values = np.pad(np.asarray(photo), ((3, 3), (3, 3), (0, 0)), mode="edge")
    view = torch.from_numpy(values).permute(2, 0, 1)[None].float() / 127.5 - 1
    face = Cone((0, 0, 1, 1), 1.0)
    map_ = torch.from_numpy(face.depth((256, 256), np.array([[1.0, 0, 3], [0, 1, 3]])))[None, None]
    with torch.no_grad():
        expected = sketcher.generator(view, map_, torch.tensor([1]))[0][0, 0, 3:253, 3:253]
    expected = ((expected + 1) * 127.5).round().clamp(0, 255).numpy()
    assert np.abs(np.asarray(sketcher(photo, style=2)) - expected).max() <= 1


def test_lists_of_photos_and_styles(sketcher, photo):
    singles = [sketcher(photo, style=k) for k in (1, 2, 3)]
    for batch in (sketcher(photo, style=[1, 2, 3]), sketcher([photo] * 3, style=[1, 2, 3])):
        assert len(batch) == 3
        for one, two in zip(singles, batch, strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
    assert len({single.tobytes() for single in singles}) == 3
    assert len(sketcher([photo, photo], style=1)) == 2
    assert sketcher([], style=1) == []


def test_draw_aligned_equals_drawing_the_pictures(sketcher, photo):
    face = Cone((0, 0, 1, 1), 1.0)
    photos = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None]
    maps = torch.from_numpy((face.depth((250, 250)) * 255).astype(np.uint8))[None, None]
    drawn = sketcher.draw_aligned(photos, maps, torch.tensor([0]))
    assert drawn.shape == (1, 1, 250, 250)
    assert drawn.dtype == torch.uint8
    assert np.abs(drawn[0, 0].numpy().astype(int) - np.asarray(sketcher(photo, style=1))).mean() < 1


def test_the_main_view_is_that_of_the_face_with_its_depth(sketcher):
    values = np.random.default_rng(1).integers(1, 256, (400, 500, 3), np.uint8)
    face = placement(TEMPLATE, (500, 400))
    face[:, 2] += 3
    photo, map_ = sketcher.main_view(values)
    expected = warp(values, face, (256, 256), fill="replicate").transpose(2, 0, 1)
    np.testing.assert_allclose(photo[0].numpy(), expected / 127.5 - 1, atol=1e-5)
    np.testing.assert_array_equal(map_[0, 0].numpy(), Cone((0, 0, 1, 1), 1.0).depth((256, 256), face))
    tile, _ = sketcher.main_view(values, frame="whole")  # without a face the first tile
    assert tile.shape == (1, 3, 512, 512)


def test_sketches_are_rounded_to_the_nearest_level():
    levels = torch.arange(256)
    for shift in (-0.49, 0.49):
        assert torch.equal(_bytes((levels + shift) / 127.5 - 1), levels.to(torch.uint8))


def test_given_depth_is_used(sketcher, photo, tmp_path):
    near = np.ones((250, 250), np.float32)
    by_array = sketcher(photo, depth=near)
    white = Image.new("L", (250, 250), 255)
    white.save(tmp_path / "white.png")
    for given in (white, (tmp_path / "white.png").read_bytes()):
        assert sketcher(photo, depth=given).tobytes() == by_array.tobytes()
    Image.fromarray(np.full((250, 250), 255, np.uint8)).save(tmp_path / "near.png")
    # A constant map of a file carries no scale of its own, so only a varying one is compared.
    ramp = np.tile(np.linspace(0, 1, 250, dtype=np.float32), (250, 1))
    Image.fromarray(np.rint(ramp * 255).astype(np.uint8)).save(tmp_path / "ramp.png")
    by_file, by_ramp = sketcher(photo, depth=tmp_path / "ramp.png"), sketcher(photo, depth=ramp)
    assert np.abs(np.asarray(by_file).astype(int) - np.asarray(by_ramp)).mean() < 1
    assert by_array.tobytes() != by_ramp.tobytes()
    with pytest.warns(UserWarning, match="zero everywhere"):
        assert sketcher(photo, depth="none").tobytes() != by_ramp.tobytes()


def test_no_face_is_one_sentence_unless_the_whole_is_asked_for(sketcher):
    black = Image.new("RGB", (120, 80))
    with pytest.raises(NoFaceError, match="--frame whole"):
        sketcher(black)
    assert sketcher(black, frame="whole").size == (120, 80)


def test_without_a_face_a_depth_of_ones_own_draws_the_photo_as_it_is(sketcher):
    black = Image.new("RGB", (120, 80))
    ramp = np.tile(np.linspace(0, 1, 120, dtype=np.float32), (80, 1))
    for depth_source in (ramp, "builtin"):
        with pytest.warns(UserWarning, match="drawn as it is"):
            drawn = sketcher(black, depth=depth_source)
        assert drawn.tobytes() == sketcher(black, depth=depth_source, frame="whole").tobytes()
        with pytest.raises(NoFaceError):
            sketcher(black, depth=depth_source, frame="face")
    with pytest.raises(NoFaceError):
        sketcher(black, depth="auto")


@pytest.mark.parametrize(
    ("count", "given", "words"),
    [
        *[(1, {"style": [style]}, f"there is no style {style}") for style in (0, 4, -1)],
        *[(1, {"style": style}, f"style is {style!r}; give a whole number from 1") for style in ("1", 1.0, 1.5)],
        (1, {"frame": "face-on"}, r"frame is 'face-on'; give one of auto, portrait, face, whole\."),
        *[(1, {"faces": faces}, f"faces is {faces!r}") for faces in ("both", 0, -1, True, 1.5, None)],
        (1, {"size": 300}, "size is a portrait's and has no effect with frame 'auto'"),
        *[(1, {"size": size, "frame": "portrait"}, f"size is {size!r}; give") for size in (0, 63, 8193, 300.0, True)],
        (3, {"style": [1, 2]}, "2 entries for 3 photos"),
        *[(1, {"depth": d}, f"a depth map cannot be of the type {type(d).__name__}; give") for d in (5, 0.5, True, {})],
        (1, {"depth": "bultin"}, "no depth method and no file 'bultin'; did you mean builtin"),
        (1, {"depth": np.zeros((50, 250))}, "the depth map is 250×50 and would be stretched to the photo's 250×250"),
        (1, {"depth": b"no picture"}, "the depth map: what the bytes hold is not a picture"),
        (2, {"depth": [None]}, "depth has 1 entry for 2 photos"),
    ],
)
def test_what_cannot_be_drawn_is_named(sketcher, photo, count, given, words):
    with pytest.raises(HidaError, match=words):
        sketcher([photo] * count, **given)


def test_an_error_says_which_of_several_photos_it_is_about(sketcher, photo, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(HidaError, match=r"^photo 2 of 3 \(.*bad\.jpg\): '.*bad\.jpg' is not a picture"):
        sketcher([photo, tmp_path / "bad.jpg", photo])
    with pytest.raises(NoFaceError, match=r"^photo 2 of 2: no face was found"):
        sketcher([photo, Image.new("RGB", (120, 80))])
    for one in (tmp_path / "bad.jpg", [tmp_path / "bad.jpg"]):
        with pytest.raises(HidaError, match=r"^'.*bad"):
            sketcher(one)


@pytest.mark.parametrize("name", [None, "", 5, b"small"])
def test_weights_that_are_no_name_are_one_sentence(name):
    with pytest.raises(HidaError, match=f"the weights are {name!r}; give the name 'small', or the path"):
        Sketcher.from_pretrained(name)
    with pytest.raises(HidaError, match="there is no device None"):
        Sketcher.from_pretrained(device=None)


def test_from_pretrained_takes_files_folders_and_names(sketcher, photo, tmp_path, monkeypatch):
    config, states = sketcher.config, sketcher.generator.state_dict()
    tensors = {f"ema.{name}": tensor for name, tensor in states.items()}
    file = tmp_path / "weights.safetensors"
    checkpoint.save(file, checkpoint.WEIGHTS, config, {}, tensors)
    run = checkpoint.checkpoint_path(tmp_path / "run", 7)
    checkpoint.save(run, checkpoint.CHECKPOINT, config, {}, tensors)
    monkeypatch.setenv("HIDA_WEIGHTS", str(tmp_path / "named"))
    checkpoint.save(tmp_path / "named" / "small.safetensors", checkpoint.WEIGHTS, config, {}, tensors)
    expected = sketcher(photo).tobytes()
    for source in (file, str(file), tmp_path / "run", "small"):
        loaded = Sketcher.from_pretrained(source)
        assert loaded.config == config
        assert loaded(photo).tobytes() == expected


def test_the_package_offers_it():
    assert hida.Sketcher is Sketcher
    assert {"Sketcher", "depth", "metrics", "models", "ops"} <= set(dir(hida))
    with pytest.raises(AttributeError):
        _ = hida.Skecher


def test_an_absent_device_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert Sketcher.from_pretrained(device="auto").device.type == "cpu"
    with pytest.raises(HidaError, match="there is no device 'cuda' here"):
        Sketcher.from_pretrained(device="cuda")


def test_the_people_are_drawn_before_a_wall_and_cut_out(sketcher, photo, monkeypatch):
    matte = np.zeros((250, 250), np.uint8)
    matte[:, :125] = 255
    asked = []

    def given(pixels, faces, device):
        asked.append((pixels.shape, [face.round(6).tolist() for face in faces]))
        return matte

    monkeypatch.setattr("hida.drawing.sketcher.person_matte", given)
    cut = sketcher(photo, background="transparent")
    assert (cut.mode, cut.size) == ("LA", (250, 250))
    np.testing.assert_array_equal(np.asarray(cut.getchannel("A")), matte)
    # The half that is not a person's has no influence.
    other = np.asarray(photo).copy()
    other[:, 125:] = 7
    assert sketcher(other, background="transparent").tobytes() == cut.tobytes()
    assert sketcher(photo, background="white", paper="ivory").getpixel((249, 0)) == (255, 255, 240)
    assert asked[0] == ((250, 250, 3), [TEMPLATE.tolist()])
    sketcher(photo, frame="whole", depth=np.zeros((250, 250), np.float32), background="white")
    assert asked[-1] == ((250, 250, 3), [])


def test_a_photo_without_a_person_keeps_its_background(sketcher, photo):
    depth_map = np.zeros((250, 250), np.float32)
    plain = sketcher(photo, frame="whole", depth=depth_map)
    for background, mode in (("white", "L"), ("transparent", "LA")):
        with pytest.warns(UserWarning, match="no person was found"):
            kept = sketcher(photo, frame="whole", depth=depth_map, background=background)
        assert kept.mode == mode
        assert kept.getchannel("L").tobytes() == plain.tobytes()


def test_tone_and_line_of_one_change_nothing(sketcher, photo):
    plain = sketcher(photo)
    assert sketcher(photo, tone=1, line=1).tobytes() == plain.tobytes()
    assert np.asarray(sketcher(photo, tone=0.5)).mean() > np.asarray(plain).mean()
    with pytest.raises(HidaError, match="tone is 9"):
        sketcher(photo, tone=9)
