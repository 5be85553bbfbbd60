"""predict, maps from files, and the command: contracts that hold whatever the network."""

import warnings

import numpy as np
import pytest
from faces import Cone, Model
from PIL import Image

import hida.depth as depth
from hida.cli.depth import main
from hida.cli.run import run_command
from hida.depth import predictor
from hida.errors import HidaError


@pytest.fixture
def models(monkeypatch):
    monkeypatch.setattr(predictor, "face_model", lambda method, device="cpu": Model())


@pytest.fixture
def bright(tmp_path):
    Image.new("RGB", (30, 20), "white").save(tmp_path / "bright.png")
    return tmp_path / "bright.png"


@pytest.fixture
def dark(tmp_path):
    Image.new("RGB", (30, 20), "black").save(tmp_path / "dark.png")
    return tmp_path / "dark.png"


def test_none_is_zeros_in_the_upright_size_and_loud(tmp_path):
    turned = Image.new("RGB", (30, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    with pytest.warns(UserWarning, match="zero everywhere"):
        found = depth.predict(tmp_path / "turned.jpg", "none")
    assert found.shape == (30, 20)
    assert found.dtype == np.float32
    assert not found.any()


@pytest.mark.parametrize("method", ["tddfa", "builtin"])
def test_a_face_gives_its_depth_in_the_photo_size_without_a_warning(models, bright, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = depth.predict(bright, method)
    np.testing.assert_array_equal(found, Cone((0, 0, 1, 1), 1.0).depth((30, 20)))
    np.testing.assert_array_equal(depth.predict(np.full((20, 30, 3), 255, np.uint8), method), found)


def test_no_face_is_an_error_for_tddfa_and_the_whole_picture_for_builtin(models, dark):
    with pytest.raises(HidaError, match="no face"):
        depth.predict(dark, "tddfa")
    with pytest.warns(UserWarning, match="whole picture"):
        assert depth.predict(dark, "builtin").shape == (20, 30)


@pytest.mark.parametrize(("available", "expected"), [(True, "tddfa"), (False, "builtin")])
def test_auto_is_tddfa_only_where_all_of_its_weights_are(monkeypatch, available, expected):
    asked = []
    monkeypatch.setattr(predictor.weights, "is_available", lambda *names: asked.extend(names) or available)
    assert depth.resolve("auto") == expected
    assert set(asked) == {"faceboxes", "mb05", "param_mean_std", "tri", "bfm"}


def test_bad_arguments_are_named(bright):
    with pytest.raises(HidaError, match="'kinect'"):
        depth.predict(bright, "kinect")
    with pytest.raises(HidaError, match="midas only"):
        depth.predict(bright, "none", model="net.pt")
    with pytest.raises(HidaError, match="needs a network"):
        depth.predict(bright, "midas")
    with pytest.raises(HidaError, match="finds no faces"):
        depth.face_model("none")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 51], [102, 255]], np.uint8), [[0, 0.2], [0.4, 1]]),
        (np.array([[0, 13107], [26214, 65535]], np.uint16), [[0, 0.2], [0.4, 1]]),
        (np.array([[0, 0.2], [0.4, 0.5]]), [[0, 0.2], [0.4, 0.5]]),
        (np.array([[-1.0, 0], [1, 3]], np.float32), [[0, 0.25], [0.5, 1]]),
        (np.array([[10, 20], [30, 50]], np.int64), [[0, 0.25], [0.5, 1]]),
        (np.array([[True, False], [False, True]]), [[1, 0], [0, 1]]),
    ],
)
def test_a_map_is_scaled_by_its_type(tmp_path, values, expected):
    np.save(tmp_path / "map.npy", values)
    sources = [values, values[None], tmp_path / "map.npy"]
    if values.dtype in (np.uint8, np.uint16):
        Image.fromarray(values).save(tmp_path / "map.png")
        sources.append(tmp_path / "map.png")
    for source in sources:
        np.testing.assert_allclose(depth.depth_from_file(source, (2, 2)), expected, atol=1e-6)


def test_a_map_of_another_size_is_resized_bilinearly():
    ramp = np.tile(np.linspace(0, 1, 50, dtype=np.float32), (40, 1))
    found = depth.depth_from_file(ramp, (100, 80))
    assert found.shape == (80, 100)
    assert found.dtype == np.float32
    # Output pixel x lies at (x + 0.5) / 2 - 0.5 of the source.
    inner = np.arange(5, 95)
    np.testing.assert_allclose(found[40, inner], ((inner + 0.5) / 2 - 0.5) / 49, atol=1e-5)


def test_a_grey_map_saved_in_colour_is_read_and_a_coloured_one_refused(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "rgb.png")
    np.testing.assert_allclose(depth.depth_from_file(tmp_path / "rgb.png", (16, 16)), grey / 255, atol=1e-6)
    Image.fromarray(np.dstack([grey, grey, 255 - grey])).save(tmp_path / "jet.png")
    with pytest.raises(HidaError, match=r"jet\.png is a colour picture"):
        depth.depth_from_file(tmp_path / "jet.png", (16, 16))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[np.nan, 1]]), "not finite"),
        (np.zeros((2, 2, 3)), "shape"),
        (np.zeros((0, 5)), "shape|no pixels"),
        (np.full((2, 2), 7.0), "everywhere"),
        (np.array([["a"]]), "type"),
    ],
)
def test_maps_that_mean_nothing_are_refused(values, reason):
    with pytest.raises(HidaError, match=reason):
        depth.depth_from_file(values, (2, 2))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("bultin", "no depth method and no file 'bultin'; did you mean builtin"),
        ("Tddfa", "did you mean tddfa"),
        ("mida:net.pt", "did you mean midas"),
        ("what", "choose auto, tddfa, midas, builtin, none"),
        ("maps/a.png", "the depth map 'maps/a.png' does not exist; check the path"),
        ("b.tif", "the depth map 'b.tif' does not exist"),
    ],
)
def test_a_word_that_is_no_method_and_no_file_is_named(name, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HidaError, match=sentence):
        depth.require_method(name)
    (tmp_path / "what").touch()
    for known in (*depth.METHODS, "midas:some/net", "what"):
        depth.require_method(known)


def test_unreadable_maps_are_named_and_no_pickle_is_opened(tmp_path):
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY\x01")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("object.npy", "torn.npy", "torn.png", "missing.npy", "missing.png"):
        with pytest.raises(HidaError, match=name):
            depth.depth_from_file(tmp_path / name, (4, 4))


@pytest.mark.parametrize(("bits", "largest"), [(8, 255), (16, 65535)])
def test_the_command_writes_the_map_at_the_asked_depth(models, bright, tmp_path, bits, largest, capsys):
    main([str(bright), "--out", str(tmp_path / "out"), "--method", "builtin", "--bits", str(bits)])
    found = np.asarray(Image.open(tmp_path / "out/bright.png"))
    np.testing.assert_array_equal(found, np.rint(Cone((0, 0, 1, 1), 1.0).depth((30, 20)) * largest))
    assert "1 depth map by builtin" in capsys.readouterr().out


def test_one_bad_photo_among_many_is_named_and_the_others_are_written(models, bright, dark, tmp_path, capsys):
    (tmp_path / "empty.png").touch()
    out = tmp_path / "out"
    status = run_command(main, [str(tmp_path), "--out", str(out), "--method", "tddfa"])
    assert status == 2
    error = capsys.readouterr().err
    assert "empty.png" in error
    assert "dark.png" in error
    assert "2 of 3 photos" in error
    assert [path.name for path in out.iterdir()] == ["bright.png"]


def test_none_is_said_on_stderr(bright, tmp_path, capsys):
    main([str(bright), "--out", str(tmp_path / "out"), "--method", "none"])
    assert "zero everywhere" in capsys.readouterr().err
    assert not np.asarray(Image.open(tmp_path / "out/bright.png")).any()


def test_nothing_is_overwritten_by_another_photo(models, bright, tmp_path):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / bright.name
    Image.new("RGB", (9, 9), "white").save(other)
    main([str(bright), str(other), "--out", str(tmp_path / "out"), "--method", "none"])
    stem = bright.stem
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{tmp_path.name}-{stem}.png", f"other-{stem}.png"}
    before = bright.read_bytes()
    with pytest.raises(HidaError, match="one of the photos"):
        main([str(bright), "--out", str(tmp_path), "--method", "builtin"])
    assert bright.read_bytes() == before


def test_a_folder_without_pictures_and_no_photo_at_all_are_named(tmp_path):
    with pytest.raises(HidaError, match="holds no pictures"):
        main([str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(HidaError, match="one or more photos"):
        main(["--out", str(tmp_path / "out")])


def test_a_model_is_loaded_once_for_every_device(monkeypatch):
    loaded = []
    monkeypatch.setattr(predictor, "_face_models", {})
    monkeypatch.setattr("hida.depth.builtin.network.BuiltinDepth.load", lambda device: loaded.append(device) or device)
    found = [depth.face_model("builtin", device) for device in ("cpu", "cuda", "cpu", "cuda")]
    assert found == ["cpu", "cuda", "cpu", "cuda"]
    assert loaded == ["cpu", "cuda"]


def test_missing_tddfa_weights_are_all_named_with_the_one_command_that_fetches_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HIDA_WEIGHTS", "")
    monkeypatch.setenv("HIDA_CACHE", str(tmp_path))
    with pytest.raises(HidaError, match=r"mb05_120x120\.pth.*bfm\.npz.*hida weights fetch tddfa --accept-licence"):
        depth.face_model("tddfa")
