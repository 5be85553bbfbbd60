"""The matte's network against the original: outputs of MediaPipe's file run by LiteRT, at every 16th pixel."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hida.matte.network import SelfieSegmentation
from hida.weights import find

STORED = Path(__file__).with_name("selfie_segmentation.npz")


@pytest.fixture(scope="module")
def pictures():
    data = pytest.importorskip("skimage.data", reason="scikit-image brings the photos")
    astronaut = data.astronaut()
    return {  # no picture is resampled, which every version of a library does a little differently
        "astronaut": astronaut[::2, ::2],
        "head": astronaut[:256, 100:356],
        "mirrored": astronaut[::2, ::-2],
        "camera": np.repeat(data.camera()[::2, ::2, None], 3, 2),
        "coffee": data.coffee()[:256, :256],
        "cat": data.chelsea()[:256, 100:356],
    }


def test_the_outputs_are_those_of_the_original(pictures):
    network = SelfieSegmentation.from_file(find("matte"))
    stored = np.load(STORED)
    assert set(stored) == set(pictures)
    for name, picture in pictures.items():
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            found = network(x)[0, 0].numpy()
        assert found.shape == (256, 256)
        assert np.abs(found[8::16, 8::16] - stored[name]).max() <= 1e-3, name


def test_the_stored_outputs_tell_people_from_their_surroundings():
    stored = np.load(STORED)
    assert ((stored["head"] < 0.1).sum(), (stored["head"] > 0.9).sum()) > (80, 80)
    assert stored["coffee"].mean() < 0.1
