"""Who finds the objects: a zero-shot detector of transformers, Florence-2, or a plain CLIP.

A teacher is any callable, picture (RGB) and lowest score -> detections, with a `name` that labels are signed with.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from transformers import MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING, AutoConfig, AutoProcessor

from hivg_hf.zero_shot.clip_towers import ZeroShotClip
from hivg_hf.zero_shot.detector import Detection, TextDetector, best_device, clip_box
from hivg_hf.zero_shot.grounder import ZeroShotGrounder
from hivg_hf.zero_shot.map_boxes import level_boxes
from hivg_hf.zero_shot.proposal_scores import score_proposals
from hivg_hf.zero_shot.proposals import ProposalSource

CLIP_PROPOSALS = 40  # of the maps of all nouns, the largest


class Teacher(Protocol):
    """Finds objects in a picture."""

    name: str

    def __call__(self, picture: PIL.Image.Image, threshold: float) -> list[Detection]: ...


def load_teacher(model: str, nouns: Sequence[str] | None = None, device: str | None = None) -> Teacher:
    """Open a teacher by folder or Hub id; the kind of model decides how it is asked.

    Args:
        model: a zero-shot object detection model, a Florence-2, or a CLIP.
        nouns: what to look for. Florence-2 may do without: it then looks for what it knows.
        device: `"cpu"`, `"cuda:0"`, ...

    Raises:
        ValueError: it is another kind of model or none at all, or nouns are missing.
    """
    try:
        config = AutoConfig.from_pretrained(model)
    except OSError as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"The teacher '{model}' is neither a folder nor a Hub id that can be reached: {why}"
        ) from None
    kind = config.model_type
    if kind == "florence2":
        return FlorenceTeacher.from_pretrained(model, nouns, device)
    if kind != "clip" and type(config) not in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING:
        known = ", ".join(sorted({one.model_type for one in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING}))
        raise ValueError(f"'{model}' is a {kind} model; a teacher is one of {known}, florence2 or clip.")
    if not nouns:
        raise ValueError(f"A {kind} teacher needs nouns to look for, for example --nouns 'person, dog, car'.")
    if kind == "clip":
        return ClipTeacher(ZeroShotClip.from_pretrained(model, device), nouns, model)
    return DetectorTeacher(TextDetector.from_pretrained(model, device), nouns, model)


class DetectorTeacher:
    """A zero-shot detector that is asked for nouns."""

    def __init__(self, detector: TextDetector, nouns: Sequence[str], name: str) -> None:
        self.detector, self.nouns, self.name = detector, list(nouns), name

    def __call__(self, picture: PIL.Image.Image, threshold: float) -> list[Detection]:
        return self.detector(picture, self.nouns, threshold)


class ClipTeacher:
    """A plain CLIP: boxes are blobs of its nouns' maps (or of a source of proposals), named by the nearest noun.

    The score is the noun's share among all nouns and the background prompts. The weakest of the teachers, see
    docs/zero-shot.md.

    Args:
        encoder: the CLIP.
        nouns: what to look for.
        name: of the teacher.
        proposals: picture and nouns -> (K, 4) xyxy pixels, in place of the maps' blobs.
        scoring: how CLIP looks at a box.
    """

    def __init__(
        self,
        encoder: ZeroShotClip,
        nouns: Sequence[str],
        name: str,
        proposals: ProposalSource | None = None,
        scoring: str = "crop",
    ) -> None:
        self.encoder, self.nouns, self.name = encoder, list(nouns), name
        self.proposals, self.scoring = proposals or self._blobs, scoring
        self._grounder = ZeroShotGrounder(encoder)

    def __call__(self, picture: PIL.Image.Image, threshold: float) -> list[Detection]:
        boxes = self.proposals(picture, self.nouns)
        if not len(boxes):
            return []
        rivals = [prompt for prompt in self.encoder.background if prompt.strip()]
        logits = score_proposals(self.encoder, picture, boxes, [*self.nouns, *rivals], self.scoring)
        shares = np.exp(logits - logits.max(axis=0))
        shares /= shares.sum(axis=0)  # (nouns and rivals, K)
        found = []
        for box, column in zip(boxes, shares.T, strict=True):
            best = int(column.argmax())
            x1, y1, x2, y2 = (float(edge) for edge in box)
            if best < len(self.nouns) and column[best] >= threshold:
                found.append(Detection(self.nouns[best], (x1, y1, x2, y2), float(column[best])))
        return sorted(found, key=lambda detection: -detection.score)

    def _blobs(self, picture: PIL.Image.Image, nouns: Sequence[str]) -> np.ndarray:
        boxes = [level_boxes(values, largest_only=False) for values in self._grounder.maps(picture, nouns)]
        unique = np.unique(np.concatenate(boxes), axis=0)
        areas = (unique[:, 2] - unique[:, 0]) * (unique[:, 3] - unique[:, 1])
        return unique[np.argsort(-areas, kind="stable")[:CLIP_PROPOSALS]]


class FlorenceTeacher:
    """Florence-2: finds nouns (`<CAPTION_TO_PHRASE_GROUNDING>`, one noun at a time), or describes what it sees itself.

    It generates text with places and no score; the score is the geometric mean of its tokens' probabilities, one for
    all boxes of an answer.

    Args:
        model: a `Florence2ForConditionalGeneration`; put into eval mode.
        processor: its processor.
        nouns: what to look for; None: `<DENSE_REGION_CAPTION>`.
        name: of the teacher.
        max_new_tokens: of an answer.
    """

    def __init__(
        self, model: Any, processor: Any, nouns: Sequence[str] | None, name: str, max_new_tokens: int = 512
    ) -> None:
        self.model, self.processor, self.name = model.eval(), processor, name
        self.nouns, self.max_new_tokens = None if nouns is None else list(nouns), max_new_tokens

    @classmethod
    def from_pretrained(
        cls, model: str, nouns: Sequence[str] | None = None, device: str | None = None
    ) -> "FlorenceTeacher":
        from transformers import Florence2ForConditionalGeneration

        florence = Florence2ForConditionalGeneration.from_pretrained(model).to(device or best_device())
        return cls(florence, AutoProcessor.from_pretrained(model), nouns, model)

    def __call__(self, picture: PIL.Image.Image, threshold: float) -> list[Detection]:
        if self.nouns is None:
            found = self._answer(picture, "<DENSE_REGION_CAPTION>", None)
        else:
            task = "<CAPTION_TO_PHRASE_GROUNDING>"
            found = [one for noun in self.nouns for one in self._answer(picture, task, noun)]
        return sorted((one for one in found if one.score >= threshold), key=lambda one: -one.score)

    @torch.no_grad()
    def _answer(self, picture: PIL.Image.Image, task: str, noun: str | None) -> list[Detection]:
        inputs = self.processor(images=picture, text=task + (noun or ""), return_tensors="pt").to(self.model.device)
        options = {"do_sample": False, "num_beams": 1, "return_dict_in_generate": True, "output_scores": True}
        outputs = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, **options)
        chances = self.model.compute_transition_scores(outputs.sequences, outputs.scores, normalize_logits=True)
        score = float(chances[torch.isfinite(chances)].mean().exp())
        text = self.processor.batch_decode(outputs.sequences, skip_special_tokens=False)[0]
        parsed = self.processor.post_process_generation(text=text, task=task, image_size=picture.size)[task]
        found = []
        for box, label in zip(parsed["bboxes"], parsed["labels"], strict=True):
            inside = clip_box(box, picture.size)
            words = (noun or str(label)).strip()
            if inside is not None and words:
                found.append(Detection(words, inside, score))
        return found
