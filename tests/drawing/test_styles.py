"""Styles: what a user may write, and that mixtures and maps reach the network as they were meant."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from small_set import inputs

from hida.config import Config, GeneratorConfig, LossConfig
from hida.drawing.sketcher import Sketcher
from hida.drawing.styles import map_weights, mixture_weights, parse_style, style_map_from_file, style_name, sweep
from hida.errors import HidaError
from hida.models import build_generator
from hida.models.conditions import style_at

PHOTO_AND_DEPTH = inputs()[:2]


def test_numbers_and_mixtures_are_read():
    assert parse_style("2") == 2
    assert parse_style("1:0.6,3:0.4") == {1: 0.6, 3: 0.4}
    assert style_name(2) == "style2"
    assert style_name({1: 3.0, 3: 1.0}) == "style1-75_3-25"
    np.testing.assert_allclose(mixture_weights({1: 3.0, 3: 1.0}, 3), [0.75, 0, 0.25])


@pytest.mark.parametrize("text", ["", "a", "1.5", "1:x", "1:0.5,1:0.5", "1:0.5,", "1:2:3", ":"])
def test_anything_else_is_quoted(text):
    with pytest.raises(HidaError, match="--style"):
        parse_style(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("1,3", "give 1 3, with spaces, to draw each, or 1:1,3:1 to mix"),
        ("1;2;3", "give 1 2 3,"),
        ("all", "--style out"),
    ],
)
def test_what_was_meant_is_said(text, hint):
    with pytest.raises(HidaError, match=hint):
        parse_style(text)


def test_a_sweep_holds_both_ends():
    assert sweep(1, 3, 3) == [{1: 1.0, 3: 0.0}, {1: 0.5, 3: 0.5}, {1: 0.0, 3: 1.0}]
    for wrong in ((1, 1, 3), (1, 2, 1)):
        with pytest.raises(HidaError, match="sweep"):
            sweep(*wrong)


def test_masks_are_read_by_number_or_by_colour(tmp_path):
    numbers = np.array([[1, 2], [3, 3]], np.uint8)
    Image.fromarray(numbers).save(tmp_path / "grey.png")
    read = style_map_from_file(tmp_path / "grey.png", (4, 4), 3)
    np.testing.assert_array_equal(read.argmax(2), np.kron(numbers - 1, np.ones((2, 2))))
    np.testing.assert_array_equal(read.sum(2), 1)
    colours = np.array([[[255, 0, 0], [0, 200, 0]], [[0, 0, 9], [100, 0, 100]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "colour.png")
    read = style_map_from_file(tmp_path / "colour.png", (2, 2), 3)
    np.testing.assert_allclose(read, [[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0.5, 0, 0.5]]])


LABELS = np.array([[1, 2, 3], [3, 1, 2]])
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
REVERSED = [0, 0, 0, 0, 0, 255, 0, 255, 0, 255, 0, 0]


def _palette(indices, colours):
    image = Image.fromarray(indices.astype(np.uint8)).convert("L")
    image.putpalette(colours)
    return image


@pytest.mark.parametrize(
    ("suffix", "image"),
    [
        ("png", Image.fromarray(LABELS.astype(np.uint16))),
        ("tif", Image.fromarray(LABELS.astype(np.uint16))),
        ("tif", Image.fromarray(LABELS.astype(np.int32))),
        ("tif", Image.fromarray(LABELS.astype(np.float32))),
        ("png", _palette(LABELS, VOC)),
        ("png", _palette(LABELS, REVERSED)),
        ("png", _palette(LABELS - 1, [255, 0, 0, 0, 255, 0, 0, 0, 255])),
        ("gif", _palette(3 - LABELS, [0, 0, 255, 0, 255, 0, 255, 0, 0])),
        ("png", Image.fromarray(LABELS.astype(np.uint8)).quantize(8)),
        ("png", Image.fromarray(LABELS.astype(np.uint8)).convert("RGB")),
        ("png", Image.fromarray(LABELS.astype(np.uint8)).convert("LA")),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_label_picture_of_any_kind_keeps_its_numbers_and_is_turned(tmp_path, suffix, image, orientation):
    wanted = np.eye(3)[LABELS - 1]
    if orientation == 6 and suffix != "gif":
        image = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    # A profile is about colours to look at, which these are not.
    image.save(tmp_path / f"a.{suffix}", exif=exif, icc_profile=b"no profile")
    np.testing.assert_array_equal(style_map_from_file(tmp_path / f"a.{suffix}", (3, 2), 3), wanted)


def test_a_mask_of_two_bits_keeps_its_numbers(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 2, 0, 0, 0, 0))
    rows = zlib.compress(bytes([0, 0b01101100, 0, 0b11011000]))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    np.testing.assert_array_equal(style_map_from_file(tmp_path / "a.png", (3, 2), 3).argmax(2) + 1, LABELS)


@pytest.mark.parametrize(
    ("pixels", "styles", "sentence"),
    [
        (np.full((2, 2), 4, np.uint8), 3, "value 4"),
        (np.full((2, 2), 257, np.uint16), 3, "value 257"),
        (np.full((2, 2), 1 << 20, np.int32), 3, "value 1048576"),
        (np.full((2, 2), 1.5, np.float32), 3, "value 1.5"),
        (np.full((2, 2), np.nan, np.float32), 3, "value nan"),
        (np.zeros((2, 2), np.uint8), 3, "value 0"),
        (np.array([[[0, 0, 0], [9, 0, 0]]], np.uint8), 3, "black pixels"),
        (np.array([[[0, 0, 9], [9, 0, 0]]], np.uint8), 2, "more colours"),
        (np.array([[[200, 150, 120], [90, 60, 50]]], np.uint8), 3, "looks like a photo"),
        (
            np.array([[[255, 240, 250]]], np.uint8),
            4,
            "a photo.* 1 to 4, as grey .* red, green and blue for styles 1, 2",
        ),
    ],
)
def test_a_mask_that_names_no_style_is_refused(tmp_path, pixels, styles, sentence):
    Image.fromarray(pixels).save(tmp_path / "mask.tif")
    with pytest.raises(HidaError, match=sentence):
        style_map_from_file(tmp_path / "mask.tif", (2, 2), styles)


def test_few_mixtures_of_all_three_colours_are_no_photo(tmp_path):
    pixels = np.full((10, 10, 3), (255, 0, 0), np.uint8)
    pixels[:, 5:] = 90  # half of it, no more
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    np.testing.assert_allclose(style_map_from_file(tmp_path / "mask.png", (10, 10), 3)[0, 9], [1 / 3] * 3, rtol=1e-6)


def test_a_map_of_another_shape_is_refused_and_one_of_another_size_is_not(tmp_path):
    for size in ((40, 30), (39, 30), (4, 3), (1, 1)):
        Image.new("L", size, 2).save(tmp_path / "mask.png")
        assert style_map_from_file(tmp_path / "mask.png", (400, 300), 3)[..., 1].all()
    for size in ((30, 40), (40, 40), (38, 30), (4, 1)):
        Image.new("L", size, 2).save(tmp_path / "mask.png")
        with pytest.raises(HidaError, match=f"mask.png' is {size[0]}×{size[1]} and would be stretched to .* 400×300"):
            style_map_from_file(tmp_path / "mask.png", (400, 300), 3)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return build_generator(GeneratorConfig(base_width=4)).eval()


def test_a_map_of_one_style_is_that_style(generator):
    weights = torch.tensor([[0.2, 0.0, 0.8]])
    with torch.inference_mode():
        wanted = generator(*PHOTO_AND_DEPTH, weights)[0]
        # Of any size: a level takes the mean over what its pixels cover.
        for side in (256, 512, 1):
            found = generator(*PHOTO_AND_DEPTH, weights[:, :, None, None].expand(1, 3, side, side).contiguous())[0]
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_level_takes_the_mean_of_what_its_pixels_cover():
    weights = torch.zeros(1, 2, 4, 4)
    weights[:, 0, :, :1], weights[:, 1, :, 1:] = 1, 1
    torch.testing.assert_close(style_at(weights, torch.Size((2, 2)))[0, 0], torch.tensor([[0.5, 0.0], [0.5, 0.0]]))


def test_a_map_draws_each_side_in_its_own_style(generator):
    halves = torch.zeros(1, 3, 256, 256)
    halves[:, 0, :, :128], halves[:, 2, :, 128:] = 1, 1
    with torch.inference_mode():
        first, third = (generator(*PHOTO_AND_DEPTH, torch.tensor([style]))[0] for style in (0, 2))
        mixed = generator(*PHOTO_AND_DEPTH, halves)[0]

    def distance(a, b, columns):
        return float((a - b)[..., columns].abs().mean())

    left, right = slice(0, 64), slice(192, 256)
    assert distance(mixed, first, left) < distance(mixed, third, left)
    assert distance(mixed, third, right) < distance(mixed, first, right)


def test_the_sketcher_takes_mixtures_and_maps(generator):
    sketcher = Sketcher(generator, Config(generator=generator.config))
    photo = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    flat = np.zeros((200, 300), np.float32)
    one = sketcher(photo, style=2, depth=flat, frame="whole")
    assert sketcher(photo, style={2: 0.7}, depth=flat, frame="whole").tobytes() == one.tobytes()
    maps = np.zeros((200, 300, 3), np.float32)
    maps[:, :, 1] = 1
    mapped = sketcher(photo, style=maps, depth=flat, frame="whole")
    assert np.abs(np.asarray(mapped).astype(int) - np.asarray(one)).max() <= 1
    assert len(sketcher(photo, style=[1, {1: 1.0, 3: 1.0}, maps], depth=flat, frame="whole")) == 3


@pytest.mark.parametrize(
    ("style", "sentence"),
    [
        ({1: 0.5, 4: 0.5}, "no style 4"),
        ({1: -0.5, 2: 1.0}, "weights"),
        ({1: 0.0}, "weights"),
        ({1: float("nan")}, "weights"),
        ({1: 1e308, 2: 1e308}, "weights"),
        ({1: 10**400}, "weights"),
        ({1: None}, "weights"),
        ({True: 1.0}, "no style True"),
        ([True], "no style True"),
        ([None], "no style None"),
        ([1, "2"], "no style '2'; these weights have styles 1 to 3, given as a whole number"),
        ([2.0], "no style 2.0; these weights have styles 1 to 3, given as a whole number"),
        ([np.int64(4)], "no style 4; these weights have styles 1 to 3.$"),
        *[(style, f"style is {style!r}; give a whole number") for style in (None, True, False, 1j, b"1")],
        (np.ones((0, 0, 3)), "style map must be"),
        (np.full((200, 300, 3), 1e39), "weights of a style map go up to 1e.39"),
        (np.ones((5, 5, 2), np.float32), "style map must be"),
        (np.full((200, 300, 3), -1.0), "style map must be"),
        (np.zeros((200, 300, 3)), "a weight above 0 at every pixel"),
        (np.ones((5, 5, 3), np.float32), "5×5 and not of the photo's size"),
    ],
)
def test_styles_that_cannot_be_drawn_are_named(generator, style, sentence):
    sketcher = Sketcher(generator, Config(generator=generator.config))
    with pytest.raises(HidaError, match=sentence):
        sketcher(np.zeros((200, 300, 3), np.uint8), style=style, depth=np.zeros((200, 300)), frame="whole")


@pytest.mark.parametrize(
    ("mixture", "wanted"),
    [
        ({1: 1e39}, [1, 0, 0]),
        ({1: 1e-320}, [1, 0, 0]),
        ({1: 8e307, 3: 8e307}, [0.5, 0, 0.5]),
        ({2: 1e-60, 3: 3e-60}, [0, 0.25, 0.75]),
    ],
)
def test_weights_of_any_scale_are_shares(generator, mixture, wanted):
    Sketcher(generator, Config(generator=generator.config)).require_styles([mixture])
    np.testing.assert_allclose(mixture_weights(mixture, 3), wanted, rtol=1e-4)
    assert style_name(mixture) == "style" + "_".join(f"{number}-{100 * wanted[number - 1]:g}" for number in mixture)


def test_a_network_without_a_style_map_has_one_style():
    config = GeneratorConfig(2, activation="relu", modulation="none", depth=False, style_map=False, residual="none")
    sketcher = Sketcher(build_generator(config), Config(generator=config, loss=LossConfig(weight_geometry=0)))
    assert sketcher.styles == 1
    with pytest.raises(HidaError, match="no style 2"):
        sketcher(np.zeros((64, 64, 3), np.uint8), style=2, frame="whole")


@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_the_weights_of_a_map_are_scaled_to_sums_of_one(kind):
    given = np.zeros((2, 3, 3), kind)
    given[..., 0], given[..., 2] = 200, 50
    found = map_weights(given)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.broadcast_to([0.8, 0, 0.2], (2, 3, 3)), rtol=1e-6)
    assert map_weights(found) is found
