"""What a conversion did with every parameter of an official file."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class ConversionReport:
    """What became of every parameter.

    Args:
        path: the official file.
        kind: a whole model, CLIP with bridges, or CLIP alone.
        mapped: official name to ours.
        merged: linear modules (our names) whose low-rank term was added to their weight.
        adapter: linear modules whose low-rank term is kept as a PEFT adapter.
        dropped: official name to the reason why no official forward reads it.
        created: our parameters that the file does not hold, freshly initialized.
        unread: names of other sets of weights in the file.
    """

    path: str
    kind: str
    mapped: dict[str, str] = field(default_factory=dict)
    merged: list[str] = field(default_factory=list)
    adapter: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    unread: tuple[str, ...] = ()

    def rows(self) -> list[tuple[int, str, list[str]]]:
        """How many, what became of them, and their names; one row for each outcome, the reasons of dropping apart."""
        rows = [
            (len(self.mapped), "mapped", [f"{old} -> {new}" for old, new in self.mapped.items()]),
            (len(self.merged), "low-rank terms merged into their weights", self.merged),
            (len(self.adapter), "low-rank terms kept as a PEFT adapter", self.adapter),
        ]
        for reason in dict.fromkeys(self.dropped.values()):
            names = [name for name, why in self.dropped.items() if why == reason]
            rows.append((len(names), f"dropped: {reason}", names))
        rows.append((len(self.created), "created, freshly initialized", self.created))
        return [row for row in rows if row[0]]

    def remarks(self) -> list[str]:
        """Sentences on what the counts do not say."""
        remarks = []
        if self.adapter and any(".bridge." in name for name in self.merged):
            remarks.append("The bridges' low-rank terms are merged: a bridge trains fully, it carries no adapter.")
        if self.created:
            remarks.append(f"To be trained before use: {', '.join(module_groups(self.created))}.")
        if self.unread:
            remarks.append(f"The file also holds weights under {', '.join(self.unread)}, which were not read.")
        return remarks

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {became}" for count, became, _ in self.rows())
        return "\n".join([f"{self.path}: {self.kind}; {counts}.", *self.remarks()])


def module_groups(names: Iterable[str]) -> list[str]:
    """Parameter names of ours to the few modules that hold them, for a sentence."""
    groups: dict[str, None] = {}
    for name in names:
        if ".text_norms." in name:
            groups["the bridges' text norms"] = None
        elif ".bridge." in name:
            groups["the bridges"] = None
        else:
            groups["grounding_head.score_head" if "score_head" in name else "grounding_head"] = None
    return [name for name in groups if name != "grounding_head.score_head" or "grounding_head" not in groups]
