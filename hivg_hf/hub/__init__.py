"""The Hub: one commit with a model's own files, and downloads that are checked."""

from typing import TYPE_CHECKING

from hivg_hf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .dataset import push_dataset
    from .loading import download_checked, load_with_stages, split_revision
    from .names import DEFAULT_MODEL, is_tiny, resolve_model
    from .official import open_official
    from .push import PushReport, check_pushed, push_folder, write_pushed

__all__ = [
    "DEFAULT_MODEL",
    "PushReport",
    "check_pushed",
    "download_checked",
    "is_tiny",
    "load_with_stages",
    "open_official",
    "push_dataset",
    "push_folder",
    "resolve_model",
    "split_revision",
    "write_pushed",
]

__getattr__ = lazy_names(
    __name__,
    {
        "DEFAULT_MODEL": "names",
        "PushReport": "push",
        "check_pushed": "push",
        "download_checked": "loading",
        "is_tiny": "names",
        "load_with_stages": "loading",
        "open_official": "official",
        "push_dataset": "dataset",
        "push_folder": "push",
        "resolve_model": "names",
        "split_revision": "loading",
        "write_pushed": "push",
    },
)
