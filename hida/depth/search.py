"""Find the faces of any photo: upright ones as the detector sees them, then turned by quarters, then small ones.

A detector that was trained on upright faces sees something in turned photos too: no face, half of one, or a whole one
by whose upper edge the mouth is. The score alone does not tell, for it was computed in whatever size the photo has. So
the largest face is cut out, brought to one size and detected again, the four ways round: a face scores highest upright.
Where that leaves a doubt, faces found in all four ways are brought upright by their own points, and looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hida.depth.face import Face
from hida.depth.faceboxes import MAX_HEIGHT, MAX_WIDTH
from hida.errors import warn
from hida.images.alignment import FRAME, TEMPLATE, AlignmentError, apply, compose, invert, similarity, warp

# The picture in which a face is looked at again: its side in pixels, and how many times the face's box it shows.
_SIDE, _GROW = 256, 2.2
# Scores of that second detection. FS2K's upright faces reach .9 at least, in 70 % of the photos .9997; none of them
# reached that turned (at most .9996).
_CERTAIN, _BEYOND_DOUBT = 0.9, 0.9997
# What the small faces have to reach: those of 40 pixels reach .998, and a large picture has many places to err.
_CERTAIN_SMALL = 0.99
# By how much a face has to be more certain turned than upright; and how many large faces are looked at.
_PREFERENCE, _LARGEST = 0.02, 4
# How many of the small faces are looked at again, the best scores first.
_CANDIDATES = 16
# A group's small faces are looked for if the box of the first has fewer pixels as the detector sees it.
_SMALL = 64

Build = Callable[[np.ndarray, np.ndarray, np.ndarray], list[Face]]


class Detector(Protocol):
    """What is asked of :class:`hida.depth.faceboxes.FaceBoxes`; both return boxes (K, 4) and scores (K,)."""

    def detect(self, photo: np.ndarray, *, times: float = ...) -> tuple[np.ndarray, np.ndarray]: ...

    def detect_small(self, photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class TurnedFace(Face):
    """A face found in the photo turned by quarters, told in pixels of the photo as it was given.

    Args:
        found: the face in the turned photo.
        to_turned: (2, 3), from pixels of the photo to pixels of the turned photo.
    """

    found: Face
    to_turned: np.ndarray = field(repr=False, compare=False)

    @property
    def points(self) -> np.ndarray:
        return apply(invert(self.to_turned), self.found.points)

    def depth(self, size: tuple[int, int], matrix: np.ndarray | None = None) -> np.ndarray:
        back = invert(self.to_turned)
        return self.found.depth(size, back if matrix is None else compose(back, matrix))


def find_faces(photo: np.ndarray, detector: Detector, build: Build) -> list[Face]:
    """Return the faces of a photo, the largest first, however it is turned; empty if there is none.

    Args:
        photo: (H, W, 3) uint8 RGB.
        detector: looked through as often as is needed, mostly once.
        build: makes faces from a photo, the boxes (K, 4) in it and their scores (K,).

    Warns when the largest face is doubtful however the photo is turned, and no other was found.
    """
    boxes, scores = detector.detect(photo)
    upright = build(photo, boxes, scores)
    turn, certainty = _stance(photo, upright[0].box, detector) if upright else (0, 0.0)
    if upright and turn == 0 and certainty >= _CERTAIN:
        return upright
    # A face that is tilted by some 40 degrees is seen the one way round and the other: its points tell which is right.
    best, highest = _most_certain(photo, upright, detector)
    # Which way the largest face seems to be turned is tried first, and need not be right.
    for quarters in sorted((1, 2, 3), key=lambda quarters: quarters != turn):
        if highest >= _BEYOND_DOUBT:
            break
        turned = np.rot90(photo, quarters)
        faces = [_turned(face, photo, quarters) for face in build(turned, *detector.detect(turned))]
        faces, certain = _most_certain(photo, faces, detector)
        if certain > highest + (_PREFERENCE if best is upright else 0.0):
            best, highest = faces, certain
    if highest >= _CERTAIN:
        return best
    if upright and turn == 0 and certainty:
        return upright
    small = _small_faces(photo, detector, build)
    if upright and not small:
        warn(
            "what was found in the photo may be no face: it does not look like one when it is looked at again, however "
            "it is turned; check the result, or give a photo that shows a face, upright and not cut off"
        )
    return small or upright


def find_group(photo: np.ndarray, detector: Detector, build: Build) -> list[Face]:
    """Return the first face of :func:`find_faces`, and of the others those that are faces, the largest first.

    Each of the others is brought upright by its own points and looked at again. Where the first is small, smaller ones
    are looked for at twice the size. Arguments as there.
    """
    faces = find_faces(photo, detector, build)
    if not faces:
        return []
    first, *others = faces
    reduced = max(photo.shape[0] / MAX_HEIGHT, photo.shape[1] / MAX_WIDTH)
    if _side(first) < _SMALL * max(1.0, reduced):
        boxes, scores = detector.detect(photo, times=2)
        some = np.sort(np.argsort(-scores, kind="stable")[: len(faces) + _CANDIDATES])
        small = build(photo, boxes[some], scores[some])
        others += [face for face in small if not any(_same(face, known) for known in faces)]
    group: list[Face] = []
    for face in others:
        if not any(_same(face, known) for known in (first, *group)) and _certainty(photo, face, detector) >= _CERTAIN:
            group.append(face)
    return [first, *sorted(group, key=_side, reverse=True)]


def _side(face: Face) -> float:
    """Return the mean side of a face's box."""
    return (face.box[2] - face.box[0] + face.box[3] - face.box[1]) / 2


def _same(one: Face, two: Face) -> bool:
    """Return whether two boxes show one face: the middles nearer than a third of the smaller one's side."""
    apart = np.abs(np.add(one.box[:2], one.box[2:]) - np.add(two.box[:2], two.box[2:])).max() / 2
    return bool(apart < min(_side(one), _side(two)) / 3)


def _most_certain(photo: np.ndarray, faces: list[Face], detector: Detector) -> tuple[list[Face], float]:
    """Return the faces with the first of the large ones that is a face by its points, and how surely: 0 to 1."""
    certainties = [_certainty(photo, face, detector) for face in faces[:_LARGEST]]
    if not any(certainties):
        return faces, 0.0
    convincing = [k for k, certainty in enumerate(certainties) if certainty >= _CERTAIN]
    chosen = convincing[0] if convincing else int(np.argmax(certainties))
    if chosen:
        faces = [faces[chosen], *faces[:chosen], *faces[chosen + 1 :]]
    return faces, certainties[chosen]


def _certainty(photo: np.ndarray, face: Face, detector: Detector) -> float:
    """Return how surely a face is one where its points bring it to: upright, and to no other quarter."""
    try:
        matrix = similarity(face.points, TEMPLATE + (_SIDE - FRAME[0]) / 2)
    except AlignmentError:  # points in one place
        return 0.0
    turn, certainty = _turn_of(warp(photo, matrix, (_SIDE, _SIDE), fill="replicate", resample="bilinear"), detector)
    return certainty if turn == 0 else 0.0


def _small_faces(photo: np.ndarray, detector: Detector, build: Build) -> list[Face]:
    """Return the certain ones of the faces that are too small for :meth:`Detector.detect`; of one orientation only."""
    for quarters in range(4):
        turned = np.rot90(photo, quarters)
        boxes, scores = detector.detect_small(turned)
        if quarters:  # the rarer case has to be the clearer one
            boxes, scores = boxes[scores > 0.5], scores[scores > 0.5]
        some = np.argsort(-scores, kind="stable")[:_CANDIDATES]
        stances = [_stance(turned, box, detector) for box in boxes[some].tolist()]
        kept = np.sort(some[[way == 0 and certainty >= _CERTAIN_SMALL for way, certainty in stances]])
        faces = build(turned, boxes[kept], scores[kept])
        if faces:
            return [_turned(face, photo, quarters) for face in faces] if quarters else faces
    return []


def _stance(photo: np.ndarray, box: tuple[float, float, float, float], detector: Detector) -> tuple[int, float]:
    """Return by how many quarters (of np.rot90) what is in ``box`` becomes an upright face, and how surely: 0 to 1."""
    left, top, right, bottom = box
    half = (right - left + bottom - top) / 4 * _GROW
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    try:
        matrix = similarity(np.array([middle - half, middle + half]), np.array([[-0.5, -0.5], [_SIDE - 0.5] * 2]))
    except AlignmentError:  # a box without extent
        return 0, 0.0
    return _turn_of(warp(photo, matrix, (_SIDE, _SIDE), fill="replicate", resample="bilinear"), detector)


def _turn_of(view: np.ndarray, detector: Detector) -> tuple[int, float]:
    """Return by how many quarters the face in the middle of a view becomes upright, and how surely."""
    certainties = []
    for quarters in range(4):
        certainties.append(max(_central(*detector.detect(np.rot90(view, quarters))), default=0.0))
        if quarters == 0 and certainties[0] >= _BEYOND_DOUBT:
            break
    turn = int(np.argmax(certainties))
    return turn, certainties[turn]


def _central(boxes: np.ndarray, scores: np.ndarray) -> Iterator[float]:
    """Yield the scores of the faces in the middle of :func:`_stance`'s view and of about the expected size."""
    expected = _SIDE / _GROW
    for box, score in zip(boxes, scores, strict=True):
        away = np.abs((box[:2] + box[2:]) / 2 - (_SIDE - 1) / 2).max()
        size = (box[2:] - box[:2]).mean()
        if away < 0.35 * expected and 0.6 * expected < size < 1.6 * expected:
            yield float(score)


def _turned(face: Face, photo: np.ndarray, quarters: int) -> Face:
    """Tell ``face``, found in ``np.rot90(photo, quarters)``, in pixels of ``photo``."""
    matrix = np.eye(2, 3)
    height, width = photo.shape[:2]
    for _ in range(quarters):
        matrix = compose(matrix, np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, width - 1.0]]))
        height, width = width, height
    corners = apply(invert(matrix), np.reshape(face.box, (2, 2)))
    box = (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())
    return TurnedFace(box, face.score, face, matrix)
