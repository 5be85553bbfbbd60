"""The built-in predictor: its geometry against doubles of known behaviour, its training crops, its weights."""

import numpy as np
import pytest
import torch
from faces import Detector
from PIL import Image
from torch import nn

import hida.depth as depth
from hida.depth.builtin.network import SIDE, BuiltinDepth, DepthNet, expected_points, frame_to_crop, square_to_crop
from hida.depth.builtin.train import loss, recalibrate, save_weights
from hida.depth.builtin.training_set import CACHE_GROW, CACHE_SIDE, Faces, augment, list_photos, plain
from hida.errors import HidaError
from hida.images.alignment import TEMPLATE, apply, similarity

COLOURS = np.eye(3) * 255  # left eye red, right eye green, mouth blue


class Colours(nn.Module):
    """A double of the network: depth is the mean of the channels, points are the channels' centres of mass."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 1, 1)
        self.batches = []

    def fold(self):
        return self

    def forward(self, x):
        self.batches.append(len(x))
        share = (x + 1) / 2
        weight = (share - 0.1).clamp_min(0).flatten(2) + 1e-9
        weight = (weight / weight.sum(2, keepdim=True)).view(share.shape)
        place = (torch.arange(SIDE) + 0.5) / SIDE
        points = torch.stack(((weight.sum(2) * place).sum(-1), (weight.sum(3) * place).sum(-1)), -1)
        return share.mean(1, keepdim=True), points


def dots(points: np.ndarray, size: tuple[int, int], radius: float) -> np.ndarray:
    """A black RGB picture of ``size`` = (width, height) with a soft disc of its own colour at each point."""
    y, x = np.mgrid[: size[1], : size[0]]
    picture = np.zeros((size[1], size[0], 3))
    for (px, py), colour in zip(points, COLOURS, strict=True):
        disc = np.clip(radius + 0.5 - np.hypot(x - px, y - py), 0, 1)
        picture += disc[..., None] * colour
    return np.rint(picture.clip(0, 255)).astype(np.uint8)


def box_of(points: np.ndarray) -> list[float]:
    """The detector's box that fits a face of these points: its square crop is the canonical one."""
    to_photo = similarity(TEMPLATE, points)
    scale = np.hypot(*to_photo[:, 0])
    # The canonical crop, (20, 26) to (228, 234) of the frame, is 1.39 sides wide and .04 sides below the box's middle.
    side = 208 / 1.39 * scale
    centre = apply(to_photo, np.array([[123.5, 129.5]]))[0] - (0, 0.04 * side)
    return [*(centre - side / 2), *(centre + side / 2)]


def test_the_network_is_small_and_gives_what_it_says(tmp_path):
    network = DepthNet().eval()
    assert sum(p.numel() for p in network.parameters()) < 2_000_000
    save_weights(network, tmp_path / "net.safetensors")
    assert (tmp_path / "net.safetensors").stat().st_size < 4_000_000
    with torch.inference_mode():
        found, points = network(torch.rand(2, 3, SIDE, SIDE) * 2 - 1)
    assert (found.shape, points.shape) == ((2, 1, SIDE, SIDE), (2, 3, 2))
    assert all(0 <= t.min() <= t.max() <= 1 for t in (found, points))


def test_expected_points_of_a_peak_are_its_centre():
    heat = torch.full((1, 2, 8, 16), -50.0)
    heat[0, 0, 3, 5] = 50
    heat[0, 1, 7, 15] = heat[0, 1, 7, 14] = 50
    found = expected_points(heat)[0]
    torch.testing.assert_close(found, torch.tensor([[5.5 / 16, 3.5 / 8], [15 / 16, 7.5 / 8]]))


def test_the_canonical_crop_is_what_a_fitting_box_gives():
    face = BuiltinDepth(Detector(box_of(TEMPLATE)), Colours()).faces(np.zeros((250, 250, 3), np.uint8))[0]
    np.testing.assert_allclose(square_to_crop(*face.square), frame_to_crop(), atol=0.01)


@pytest.mark.parametrize(("scale", "angle", "shift"), [(1, 0, (0, 0)), (3.3, 0, (40, 11)), (1.7, 25, (60, 90))])
def test_points_and_depth_come_back_to_the_photo(scale, angle, shift):
    turn = np.deg2rad(angle)
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = TEMPLATE @ rotation.T + shift + (250 * scale * np.sin(turn), 0)
    size = (int(points[:, 0].max() + 130 * scale), int(points[:, 1].max() + 130 * scale))
    photo = dots(points, size, 7 * scale)
    network = Colours()
    model = BuiltinDepth(Detector(), network)
    (face,) = model._faces(photo, np.array([box_of(points)], float), np.ones(1))  # found without a look at it
    np.testing.assert_allclose(face.points, points, atol=0.35 * scale)
    # The double's depth is the photo's brightness, brought to 1 at its brightest.
    found = face.depth(size)
    expected = photo.mean(2) / photo.mean(2).max()
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 0.01
    assert found[tuple(np.rint(points[2, ::-1]).astype(int))] > 0.9
    # In the aligned frame the dots lie on the template.
    aligned = face.depth((250, 250), similarity(face.points))
    expected = dots(TEMPLATE, (250, 250), 7).mean(2) / 85
    assert np.abs(aligned - expected).mean() < 0.01
    assert network.batches == [1, 1]  # points and depths of one face cost one first and one second look


def test_faces_are_in_the_detectors_order_and_none_is_empty():
    photo = np.zeros((100, 100, 3), np.uint8)
    boxes = [(10, 10, 80, 80), (0, 0, 20, 20), (5, 5, 5.2, 5.2)]
    faces = BuiltinDepth(Detector(*boxes), Colours()).faces(photo)
    assert [face.box for face in faces] == boxes[:2]
    assert BuiltinDepth(Detector(), Colours()).faces(photo) == []
    with pytest.raises(HidaError, match="uint8 array of height x width x 3"):
        BuiltinDepth(Detector(), Colours()).faces(photo[..., 0])


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (1, 1), (3, 700)])
def test_the_whole_picture_serves_where_no_face_is_seen(size):
    model = BuiltinDepth(Detector(), DepthNet())
    found = model.whole(np.full((*size, 3), 80, np.uint8)).depth(size[::-1])
    assert found.shape == size
    assert np.isfinite(found).all()


@pytest.mark.parametrize("size", [250, 256, 512])
def test_depth_batch_looks_at_the_canonical_crop_and_puts_it_back(size):
    frame = dots(TEMPLATE, (250, 250), 9)
    photo = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR))
    x = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    found = BuiltinDepth(Detector(), Colours()).depth_batch(x)
    assert found.shape == (1, 1, size, size)
    expected = photo.mean(2) / photo.mean(2).max()
    assert np.abs(found[0, 0].numpy() - expected).mean() < 0.01
    # Beyond the crop there is nothing, whatever the photo shows there.
    white = BuiltinDepth(Detector(), Colours()).depth_batch(torch.ones(1, 3, size, size))[0, 0]
    rows, columns = np.nonzero(white.numpy())
    edges = np.array([columns.min(), columns.max() + 1, rows.min(), rows.max() + 1]) * 250 / size
    np.testing.assert_allclose(edges, [20, 228, 26, 234], atol=0.5)


def test_depth_batch_equals_single_photos_and_takes_none():
    torch.manual_seed(0)
    model = BuiltinDepth(Detector(), DepthNet())
    photos = torch.rand(3, 3, 256, 256) * 2 - 1
    together = model.depth_batch(photos)
    for photo, expected in zip(photos, together, strict=True):
        torch.testing.assert_close(model.depth_batch(photo[None])[0], expected, atol=1e-5, rtol=1e-4)
    assert model.depth_batch(photos[:0]).shape == (0, 1, 256, 256)
    assert model.depth_batch(photos.double()).dtype == torch.float32
    assert not together.requires_grad
    for wrong in (torch.zeros(1, 1, 64, 64), torch.zeros(3, 64, 64), torch.zeros(1, 3, 4, 4)):
        with pytest.raises(HidaError, match="N×3×H×W"):
            model.depth_batch(wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_depth_batch_on_the_gpu_equals_the_cpu():
    torch.manual_seed(0)
    network = DepthNet()
    photos = torch.rand(2, 3, 256, 256) * 2 - 1
    expected = BuiltinDepth(Detector(), network).depth_batch(photos)
    found = BuiltinDepth(Detector(), network).to("cuda").depth_batch(photos.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, atol=2e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def faces() -> Faces:
    """Cached pictures whose photo and depth both show the three dots."""
    scale = CACHE_SIDE / CACHE_GROW / 208
    middle = np.array([123.5, 129.5])
    points = (TEMPLATE - middle) * scale + (CACHE_SIDE - 1) / 2
    photo = dots(points, (CACHE_SIDE, CACHE_SIDE), 6)
    colour = torch.from_numpy(photo).permute(2, 0, 1)[None]
    inside = torch.full((1, 1, CACHE_SIDE, CACHE_SIDE), 255, dtype=torch.uint8)
    shares = torch.from_numpy((TEMPLATE - (19.5, 25.5)) / 208)[None].float()
    one = Faces(colour, inside, colour.amax(1, keepdim=True), shares)
    return one.take(torch.zeros(16, dtype=torch.long))


def test_plain_faces_show_the_canonical_crop(faces):
    photo, target, points = plain(faces)
    found = Colours()(photo * 2 - 1)[1]
    torch.testing.assert_close(found, points, atol=2e-3, rtol=0)
    torch.testing.assert_close(points, faces.points)
    torch.testing.assert_close(target, photo.amax(1, keepdim=True), atol=1e-5, rtol=0)


def test_augmented_depth_and_points_move_together(faces):
    photo, target, points = augment(faces, torch.Generator().manual_seed(3))
    assert photo.shape == (16, 3, SIDE, SIDE)
    assert 0 <= photo.min() <= photo.max() <= 1
    place = (torch.arange(SIDE) + 0.5) / SIDE
    checked, moved = 0, 0.0
    for map_, three, before in zip(target[:, 0], points, faces.points, strict=True):
        for x, y in three.tolist():
            near = (place - x).abs() < 0.07
            down = (place - y).abs() < 0.07
            if not (0.1 < x < 0.9 and 0.1 < y < 0.9):
                continue
            disc = map_ * down[:, None] * near
            centre = torch.stack(((disc.sum(0) * place).sum(), (disc.sum(1) * place).sum())) / disc.sum()
            torch.testing.assert_close(centre, torch.tensor([x, y]), atol=0.01, rtol=0)
            checked += 1
        moved = max(moved, float((three - before).abs().max()))
        # Mirrored or not, the first point is the eye on the picture's left.
        assert three[0, 0] < three[1, 0]
    assert checked > 24
    assert moved > 0.05


def test_augmentation_is_repeatable_and_varied(faces):
    a = augment(faces, torch.Generator().manual_seed(1))
    b = augment(faces, torch.Generator().manual_seed(1))
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)
    assert (a[0][0] - a[0][1]).abs().mean() > 0.01


def test_recalibrated_norms_fit_the_weights(faces):
    torch.manual_seed(0)
    network = DepthNet()
    norm = network.stem[0].bn
    norm.running_var.fill_(100.0)
    recalibrate(network, faces, torch.Generator().manual_seed(0), batches=1)
    index = torch.randint(len(faces), (64,), generator=(generator := torch.Generator().manual_seed(0)))
    seen = network.stem[0].conv(augment(faces.take(index), generator)[0] * 2 - 1)
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), atol=1e-4, rtol=1e-3)
    assert not network.training


@pytest.mark.slow
def test_a_few_steps_learn_one_batch(faces):
    torch.manual_seed(0)
    network = DepthNet()
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    batch = plain(faces.take(torch.arange(2)))
    values = []
    for _ in range(25):
        terms = loss(network, *batch)
        total = sum(terms.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        values.append(total.item())
    assert values[-1] < values[0] / 3


@pytest.fixture(scope="module")
def model() -> BuiltinDepth:
    return BuiltinDepth.load()


def test_a_photo_from_elsewhere_gets_its_points_and_a_face_shaped_map(model, astronaut):
    faces = model.faces(astronaut)
    assert len(faces) == 1
    points = faces[0].points
    # Read off the photo by eye.
    np.testing.assert_allclose(points, [[203, 101], [248, 103], [224, 146]], atol=4)
    found = faces[0].depth((512, 512))
    np.testing.assert_array_equal(found, depth.predict(astronaut, "builtin"))
    assert found.max() > 0.95
    rows, columns = np.nonzero(found > 0.1)
    face = (rows.min(), rows.max(), columns.min(), columns.max())
    np.testing.assert_allclose(face, [68, 178, 181, 271], atol=12)
    # The nose stands out from the cheeks, the jaw and temples lie back.
    nose, cheeks = found[126, 223], (found[124, 196] + found[125, 250]) / 2
    assert nose > cheeks + 0.05


def test_mirrored_and_turned_photos_give_mirrored_and_turned_answers(model, astronaut):
    plain_face = model.faces(astronaut)[0]
    mirrored = model.faces(np.ascontiguousarray(astronaut[:, ::-1]))[0]
    flipped = mirrored.points[[1, 0, 2]]
    flipped[:, 0] = 511 - flipped[:, 0]
    np.testing.assert_allclose(flipped, plain_face.points, atol=3)
    difference = np.abs(mirrored.depth((512, 512))[:, ::-1] - plain_face.depth((512, 512)))
    assert difference.mean() < 0.01
    turned = np.asarray(Image.fromarray(astronaut).rotate(15, Image.Resampling.BICUBIC))
    turn = np.deg2rad(-15)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    expected = (plain_face.points - 255.5) @ matrix.T + 255.5
    np.testing.assert_allclose(model.faces(turned)[0].points, expected, atol=5)


def test_photos_of_fs2k_are_those_that_its_annotations_name(tmp_path):
    for name in ("photo/photo1/image1.jpg", "photo/photo1/image10.jpg", "secret.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "anno_train.json").write_text(
        '[{"image_name": "photo1/image1"}, {"image_name": "photo1/image*"}]', encoding="utf-8"
    )
    (tmp_path / "anno_test.json").write_text("[]", encoding="utf-8")
    assert list_photos([tmp_path]) == ([tmp_path / "photo/photo1/image1.jpg"], [])
    for text in ('[{"image_name": "../secret"}]', '[{"image_name": 1}]', "[{}]", "{"):
        (tmp_path / "anno_test.json").write_text(text, encoding="utf-8")
        with pytest.raises(HidaError, match=r"anno_test\.json' is damaged"):
            list_photos([tmp_path])
