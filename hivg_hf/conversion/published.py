"""What the authors publish, in one table: files on Google Drive, and the names `official:...` that they hold.

Source: README.md of linhuixiao/HiVG, commit 51f9233; sizes are those of its links, rounded. The authors' code is under
Apache-2.0; under which license the weights are is not stated.
"""

from dataclasses import dataclass

PREFIX = "official:"
ANNOTATIONS = "annotations"
CLIP = "clip"
FINE_TUNED_ON = ("unc", "unc+", "gref_umd", "referit", "flickr")
# What else the folder of a dataset may be called in an archive; only the file's own arguments decide.
OTHER_NAMES = {"unc": ("refcoco",), "unc+": ("refcoco+",), "gref_umd": ("refcocog",)}
OFFICIAL_MODELS = {"base": "ViT-B/16", "large": "ViT-L/14"}


@dataclass(frozen=True)
class PublishedFile:
    """A file on Google Drive.

    Args:
        drive_id: its id there.
        size: about how many bytes it has.
        most_unpacked: bytes that a member of it may have at most, where it is an archive.
    """

    drive_id: str
    size: int
    most_unpacked: int

    @property
    def page(self) -> str:
        """Where a browser downloads it."""
        return f"https://drive.google.com/file/d/{self.drive_id}/view"


MEGABYTE = 10**6
PUBLISHED_FILES = {
    "mixup_pretraining_base": PublishedFile("1TzDLWjS-lXEr2M9uwaSBlU0MRmaRLSmN", 1_000 * MEGABYTE, 3_000 * MEGABYTE),
    "mixup_pretraining_large": PublishedFile("1H_tv9QcDK712Ie9flLgSCZmmj0HEcjb8", 2_000 * MEGABYTE, 6_000 * MEGABYTE),
    "fine_tuning_base": PublishedFile("1vM_568M7DwnYmjEiJgXRnrDL5UT65CGJ", 4_000 * MEGABYTE, 3_000 * MEGABYTE),
    "fine_tuning_large": PublishedFile("1Yw_AVaYnw4amPsemFwKFurXgaKvJ11CB", 8_000 * MEGABYTE, 6_000 * MEGABYTE),
    "debiased_clip_base": PublishedFile("1pgso4gjHselrj4ExqJP3PYRbbX754aRq", 580 * MEGABYTE, 2_000 * MEGABYTE),
    "debiased_clip_large": PublishedFile("18T4g6P-duKifx5Ksw6gHmL0ttKW39Wa6", 1_600 * MEGABYTE, 5_000 * MEGABYTE),
    "annotations": PublishedFile("1oaKlHeEECr-KFSDcWUG3X0UNUhqjGugr", 267 * MEGABYTE, 3_000 * MEGABYTE),
}

# `official:NAME` to the file that holds it. The names of models are the presets'.
OFFICIAL_NAMES = {
    f"{size}-{kind}": f"{file}_{size}"
    for size in OFFICIAL_MODELS
    for kind, file in (
        ("mixup", "mixup_pretraining"),
        *((dataset, "fine_tuning") for dataset in FINE_TUNED_ON),
        (CLIP, "debiased_clip"),
    )
} | {ANNOTATIONS: "annotations"}


def published_file(name: str) -> str:
    """The key in `PUBLISHED_FILES` of what `official:NAME` stands for.

    Raises:
        ValueError: the authors publish nothing of that name.
    """
    if name not in OFFICIAL_NAMES:
        raise ValueError(
            f"The authors publish nothing that is called {PREFIX}{name}; choose {PREFIX} and one of "
            f"{', '.join(OFFICIAL_NAMES)}."
        )
    return OFFICIAL_NAMES[name]
