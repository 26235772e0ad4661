"""The Hub: one commit with a model's own files, and downloads that are checked."""

from typing import TYPE_CHECKING

from hivg_hf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .dataset import push_dataset
    from .loading import download_checked, load_with_stages, split_revision
    from .push import PushReport, check_pushed, push_folder

__all__ = [
    "PushReport",
    "check_pushed",
    "download_checked",
    "load_with_stages",
    "push_dataset",
    "push_folder",
    "split_revision",
]

__getattr__ = lazy_names(
    __name__,
    {
        "PushReport": "push",
        "check_pushed": "push",
        "download_checked": "loading",
        "load_with_stages": "loading",
        "push_dataset": "dataset",
        "push_folder": "push",
        "split_revision": "loading",
    },
)
