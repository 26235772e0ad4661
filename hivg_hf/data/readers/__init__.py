"""Readers: one small file per annotation format. `SOURCES` says which reader reads which name."""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from hivg_hf.utils.plugins import find_plugin, is_code_name, load_code, plugin_names

from ..schema import shown
from .common import Annotations
from .recognition import recognize


@dataclass(frozen=True)
class Source:
    """A name that `load_grounding_dataset` knows.

    Attributes:
        reader: `module:function` below this package, or a function of another one.
        published_as: its name among the published totals.
    """

    reader: str | Callable[..., Annotations]
    published_as: str = ""

    def load(self) -> Callable[..., Annotations]:
        """Import the reader; readers of other formats, and what they need, stay unloaded."""
        if not isinstance(self.reader, str):
            return self.reader
        module, _, function = self.reader.partition(":")
        return getattr(import_module(f"{__name__}.{module}"), function)


_REFER, _OFFICIAL = "refer:read_refer", "official_splits:read_official_split"
_JXU124, _LMMS = "hub:read_jxu124", "hub:read_lmms_lab"

SOURCES: Mapping[str, Source] = {
    "refcoco": Source(_REFER, "refcoco"),
    "refcoco+": Source(_REFER, "refcoco+"),
    "refcocog-umd": Source(_REFER, "refcocog-umd"),
    "refcocog-google": Source(_REFER, "refcocog-google"),
    "refclef-unc": Source(_REFER),
    "refclef-berkeley": Source(_REFER),
    "grefcoco": Source("grefcoco:read_grefcoco"),
    "unc": Source(_OFFICIAL, "refcoco"),
    "unc+": Source(_OFFICIAL, "refcoco+"),
    "gref_umd": Source(_OFFICIAL, "refcocog-umd"),
    "gref": Source(_OFFICIAL, "refcocog-google"),
    "referit": Source(_OFFICIAL, "referit"),
    "flickr": Source(_OFFICIAL, "flickr"),
    "mixup": Source(_OFFICIAL, "mixup"),
    "flickr30k-entities": Source("flickr30k_entities:read_flickr30k_entities"),
    "ref-l4": Source("ref_l4:read_ref_l4", "ref-l4"),
    "jxu124/refcoco": Source(_JXU124, "refcoco"),
    "jxu124/refcocoplus": Source(_JXU124, "refcoco+"),
    "jxu124/refcocog": Source(_JXU124, "refcocog-umd"),
    "lmms-lab/RefCOCO": Source(_LMMS, "lmms-lab/RefCOCO"),
    "lmms-lab/RefCOCOplus": Source(_LMMS),
    "lmms-lab/RefCOCOg": Source(_LMMS),
    "moondream/refcoco-m": Source("hub:read_moondream", "moondream/refcoco-m"),
}

# Formats of files and folders: named by `format=`, or recognized.
FORMATS: Mapping[str, Source] = {
    "table": Source("tabular:read_tabular"),
    "coco": Source("coco_json:read_coco_json"),
    "odvg": Source("odvg:read_odvg"),
    "grit": Source("grit:read_grit"),
    "chat": Source("chat:read_chat"),
    "label-studio": Source("label_studio:read_label_studio"),
    "cvat": Source("xml_files:read_cvat"),
    "voc": Source("xml_files:read_voc"),
    "dior-rsvg": Source("xml_files:read_dior_rsvg"),
    "yolo": Source("yolo:read_yolo"),
    "roboflow": Source("yolo:read_roboflow"),
    "hub": Source("tabular:read_hub_table"),
    "shards": Source("shards:read_shards"),
}

DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xml", ".tar", ".yaml")

PLUGINS = "hivg_hf.readers"  # the entry points by which other packages add formats

# Names under which several different things are published: asking back is better than choosing.
AMBIGUOUS = {
    "refcocog": "refcocog-umd (recommended) or refcocog-google (its train and val share images)",
    "refclef": "refclef-unc or refclef-berkeley",
}


def find_source(name: str, file_format: str | None = None, streaming: bool = False) -> Source:
    """The source of a name, a file or a folder, of another package's entry point or of `package.module:function`.

    Args:
        name: what `load_grounding_dataset` was given.
        file_format: a key of `FORMATS` where the user says it; otherwise the content tells.
        streaming: whether rows are made when they are asked for: a dataset of the Hub is then not downloaded before.

    Raises:
        ValueError: the name is unknown or means several things, is code that nobody allowed, or the format is unknown.
    """
    if file_format is not None:
        if file_format not in FORMATS:
            raise ValueError(f"Unknown format {file_format!r}; expected one of {', '.join(FORMATS)}.")
        return FORMATS[file_format]
    if name in SOURCES:
        return SOURCES[name]
    if reader := find_plugin(PLUGINS, name):
        return Source(reader)
    if is_code_name(name) and not os.path.exists(name):
        return Source(load_code(name, "the data source"))
    if name in AMBIGUOUS:
        raise ValueError(f"{name!r} means two things; say {AMBIGUOUS[name]}.")
    try:
        recognized = recognize(name)
    except OSError:  # a name that no file can have
        recognized = None
    if recognized == "hub" and streaming and not os.path.exists(name):
        recognized = "shards"
    if recognized is not None:
        return FORMATS[recognized]
    if meant := _files_like(name):
        raise ValueError(f"Unknown data source {shown(name)}; did you mean {' or '.join(map(repr, meant))}?")
    raise ValueError(
        f"Unknown data source {shown(name)}; expected refshapes, a file (.jsonl, .csv, .tsv, .parquet, .json, .xml, "
        f".tar), a pattern of files, a folder (VOC, YOLO, Roboflow, DIOR-RSVG, or one made by `hivg survey`), a Hub "
        f"dataset as owner/name, or one of {', '.join([*SOURCES, *plugin_names(PLUGINS)])}."
    )


def _files_like(name: str) -> list[str]:
    """Data files beside it that are called so but for the suffix, or nearly so; at most three."""
    folder, wanted = os.path.split(name)
    try:
        names = [entry for entry in sorted(os.listdir(folder or ".")) if entry.lower().endswith(DATA_SUFFIXES)]
    except (OSError, ValueError):  # there is none, or a name that no folder can have
        return []
    stem = os.path.splitext(wanted)[0].lower()
    found = [entry for entry in names if os.path.splitext(entry)[0].lower() in (stem, wanted.lower())]
    return [os.path.join(folder, entry) for entry in (found or difflib.get_close_matches(wanted, names, 1, 0.8))[:3]]
