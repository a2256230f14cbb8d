"""The published SOLOv2 weights: where they are, what they may be used for, what they reach."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["MODELS", "ModelEntry", "list_models"]

InputSize = tuple[int, int]

FULL: InputSize = (800, 1333)
LIGHT_448: InputSize = (448, 768)
LIGHT_512: InputSize = (512, 852)


@dataclass(frozen=True)
class ModelEntry:
    """One published file of weights.

    Attributes:
        name: What `load_model` takes.
        source: Who published it.
        url: Where it is.
        licence: Terms of the project it comes from.
        sha256: SHA-256 of the file or its first digits, as published; empty = not known here.
        mask_ap: Mask AP on COCO val2017 as published, percent.
        backbone: Its network; "DCN" where convolutions are deformable.
        schedule: Passes over COCO in units of 12; 3x with several training sizes.
        input_size: Short side after resizing and limit of the long side, pixels.
        task: What it was trained for.
    """

    name: str
    source: str
    url: str
    licence: str
    sha256: str
    mask_ap: float
    backbone: str
    schedule: str
    input_size: InputSize
    task: str = "instance"

    @property
    def file_name(self) -> str:
        """Name of the published file."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


def list_models(filter: str = "") -> list[ModelEntry]:
    """List the published weights that `load_model` knows by name.

    Args:
        filter: Only those with this text in name, source or licence; upper and lower case alike.

    Returns:
        The entries, by source.
    """
    wanted = filter.lower()
    return [
        entry
        for entry in MODELS
        if wanted in f"{entry.name}\n{entry.source}\n{entry.licence}".lower()
    ]


def _mmdetection(
    name: str, stamp: str, sha256: str, mask_ap: float, backbone: str, size: InputSize = FULL
) -> ModelEntry:
    """The name of the file ends in the first digits of its hash."""
    folder = "https://download.openmmlab.com/mmdetection/v2.0/solov2"
    schedule = "1x" if "_1x_" in name else "3x"
    url = f"{folder}/{name}/{name}_{stamp}-{sha256}.pth"
    return ModelEntry(
        name, "mmdetection", url, "Apache-2.0", sha256, mask_ap, backbone, schedule, size
    )


def _official(
    file: str, sha256: str, mask_ap: float, backbone: str, size: InputSize = FULL
) -> ModelEntry:
    return ModelEntry(
        name=f"official_{file.lower()}",
        source="official SOLO",
        url=f"https://huggingface.co/xinlongwang/SOLO/resolve/main/{file}.pth",
        licence='"SOLO for non-commercial purposes" (BSD-2-Clause text)',
        sha256=sha256,
        mask_ap=mask_ap,
        backbone=backbone,
        schedule=file[-2:],
        input_size=size,
    )


def _adelaidet(file: str, sha256: str, mask_ap: float, backbone: str) -> ModelEntry:
    return ModelEntry(
        name=f"adelaidet_{file.lower()}",
        source="AdelaiDet",
        url=f"https://huggingface.co/ZjuCv/AdelaiDet/resolve/main/{file}.pth",
        licence='"AdelaiDet for non-commercial purposes" (BSD-2-Clause text)',
        sha256=sha256,
        mask_ap=mask_ap,
        backbone=backbone,
        schedule=file[-2:],
        input_size=FULL,
    )


# Hashes: mmdetection's from its file names, the others from the listings of their repositories.
MODELS: tuple[ModelEntry, ...] = (
    _mmdetection("solov2_r50_fpn_1x_coco", "20220512_125858", "a357fa23", 34.8, "R50"),
    _mmdetection("solov2_r50_fpn_3x_coco", "20220512_125856", "fed092d4", 37.5, "R50"),
    _mmdetection("solov2_r101_fpn_3x_coco", "20220511_095119", "c559a076", 39.1, "R101"),
    _mmdetection("solov2_r101_dcn_fpn_3x_coco", "20220513_214734", "16c966cb", 41.2, "R101 DCN"),
    _mmdetection("solov2_x101_dcn_fpn_3x_coco", "20220513_214337", "aef41095", 42.4, "X101 DCN"),
    _mmdetection(
        "solov2_light_r18_fpn_3x_coco", "20220511_083717", "75fa355b", 29.7, "R18", LIGHT_448
    ),
    _mmdetection(
        "solov2_light_r34_fpn_3x_coco", "20220511_091839", "e51659d3", 31.9, "R34", LIGHT_448
    ),
    _mmdetection(
        "solov2_light_r50_fpn_3x_coco", "20220512_165256", "c93a6074", 33.7, "R50", LIGHT_448
    ),
    _official(
        "SOLOv2_R50_1x",
        "17e10fe2198665c573b363c504a1547e6a917e22fa94e926d7f8646432d8a506",
        34.8,
        "R50",
    ),
    _official(
        "SOLOv2_R50_3x",
        "659975203266ca2d00167790796fde961d09930c01124377d3ee3a8be3a3a660",
        37.5,
        "R50",
    ),
    _official(
        "SOLOv2_R101_3x",
        "7126c25eee6575ef405fc689b46510493b4dc991ebf758a12645109ed906c55f",
        39.1,
        "R101",
    ),
    _official(
        "SOLOv2_R101_DCN_3x",
        "3cd436711e57047bf00a733fb606262097b4eff7121d3251305aeab3ccc249c5",
        41.4,
        "R101 DCN",
    ),
    _official(
        "SOLOv2_X101_DCN_3x",
        "e0ef1edcb04d4e468b5bd7cc63d8de4d8267402ee180679c6c0ddbeda51f7d46",
        42.4,
        "X101 DCN",
    ),
    _official(
        "SOLOv2_LIGHT_448_R18_3x",
        "4f89669be79143566e02bdc51428fc10c83a3974a53326fcae1cf7e336dc6997",
        29.6,
        "R18",
        LIGHT_448,
    ),
    _official(
        "SOLOv2_LIGHT_448_R34_3x",
        "9243f7b9e64e4ae0a77517fed392a7f170ab3e5cad7028caa7b062c34d87d3c5",
        32.0,
        "R34",
        LIGHT_448,
    ),
    _official("SOLOv2_LIGHT_448_R50_3x", "", 33.7, "R50", LIGHT_448),
    _official("SOLOv2_LIGHT_512_DCN_R50_3x", "", 36.4, "R50 DCN", LIGHT_512),
    _adelaidet(
        "SOLOv2_R50_3x",
        "361eb419f4398c7d7ef1292c007b767746c01a277a3b5393de84f05cdacf1d05",
        37.6,
        "R50",
    ),
    _adelaidet(
        "SOLOv2_R101_3x",
        "689b8ce6dd82b3a1a2f8f146266e88e8e807bffaf5def04d2fd886b4a8f71aa9",
        39.0,
        "R101",
    ),
)
"""All that `load_model` knows by name."""
