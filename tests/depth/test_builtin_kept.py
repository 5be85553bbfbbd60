"""What a training of the built-in predictor keeps of itself comes back as it was."""

import torch

from hida.depth.builtin.progress import Progress, read, save


def test_a_file_of_a_training_has_its_step_time_options_and_tensors(tmp_path):
    kept = Progress(7, 2.5, {"steps": 9.0, "lr": 1e-3}, {"network.a": torch.arange(6.0).view(2, 3)})
    save(tmp_path / "c.safetensors", kept)
    found = read(tmp_path / "c.safetensors")
    assert (found.step, found.seconds, found.options) == (kept.step, kept.seconds, kept.options)
    assert found.tensors.keys() == {"network.a"}
    assert torch.equal(found.tensors["network.a"], kept.tensors["network.a"])
