"""Prepare a data set: align each pair, compute its depth and write both, in parallel; a stopped run continues.

A journal in OUT has the settings in its first line and then one line for each finished pair; the index of
:mod:`hida.data.prepared` is written last, so that a folder with an index is whole.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hida.data import skin
from hida.data.prepared import FOLDERS, INDEX, JOURNAL, MOST, VERSION, PreparedPair, PreparedSet
from hida.data.source import Fault, SourcePair, SourceSet
from hida.data.spawning import spawning
from hida.depth.face import FaceModel
from hida.documents import DocumentError, parse_json
from hida.errors import HidaError, Interrupted, counted, handled, printed, stops
from hida.files import remove_leftovers, write_bytes, write_json
from hida.images.alignment import FRAME, KEEP_WITHIN, TEMPLATE, AlignmentError, placement, warp
from hida.images.io import ImageError, read_image, write_png

FAULTS = "faults.json"
_SHOWN_FAULTS = 40
_COMPRESSION = 2  # a third of the time of PNG's usual 6, for files a few per cent larger


@dataclass(frozen=True)
class Settings:
    """Everything that decides a prepared pair's pixels; a journal written with other settings is not continued."""

    source: str
    depth: str = "tddfa"
    faces: str = "tddfa"
    fill_photo: str = "replicate"
    fill_sketch: str = "paper"

    def stamp(self) -> dict[str, Any]:
        """Return the settings with what else decides the pixels, as the journal's first line holds them."""
        frame = {"version": VERSION, "frame": list(FRAME), "template": TEMPLATE.tolist(), "keep_within": KEEP_WITHIN}
        return {**asdict(self), **frame}


def check_source(source: SourceSet, out: Path, allow_faults: bool) -> None:
    """Print the faults of ``source`` and list them in OUT/faults.json, a JSON list of {kind, name, message}.

    Raises:
        HidaError: if there are any, unless ``allow_faults`` leaves those pairs out.
    """
    write_json(out / FAULTS, [asdict(fault) for fault in source.faults])
    _report(source.faults, source.notes)
    if source.faults and not allow_faults:
        raise _stop(len(source.faults), source.folder, out)


def prepare(
    source: SourceSet,
    out: Path,
    settings: Settings,
    model: Callable[[], FaceModel],
    workers: int = 1,
    allow_faults: bool = False,
) -> PreparedSet:
    """Align every sound pair of ``source``, compute its depth, write the PNGs and the index.

    Pairs that are done stay done: the next call continues where this one ended.

    Args:
        model: builds the face model, once in each worker process (so it must be picklable when workers > 1).

    Raises:
        HidaError: at the end, if photos show no face, unless ``allow_faults``; each is printed and added to
            OUT/faults.json like the faults of the source. Or if no pair could be prepared.
    """
    done = _read_journal(out, settings, source.pairs)
    todo = [pair for pair in source.pairs if pair.name not in done]
    if todo:  # else the set that is there stays whole all the time
        (out / INDEX).unlink(missing_ok=True)
    if done:
        print(f"note: {len(done):,} of {counted(len(source.pairs), 'pair')} done already.", file=sys.stderr)
    _write_journal(out, settings, done.values())
    lost = []
    work = partial(_prepare_pair, out=out, settings=settings)
    with (out / JOURNAL).open("a", encoding="utf-8") as journal:
        bar = tqdm(total=len(source.pairs), initial=len(done), desc="preparing", unit="pair", smoothing=0.05)
        with bar, handled(stops(), _stop_here):
            for result in _run(work, todo, model, workers):
                bar.update()
                if isinstance(result, Fault):
                    lost.append(result)
                else:
                    done[result["pair"]["name"]] = result
                    journal.write(json.dumps(result) + "\n")
                    journal.flush()
    if lost:
        lost.sort(key=lambda fault: fault.name)
        write_json(out / FAULTS, [asdict(fault) for fault in (*source.faults, *lost)])
        _report(lost)
        if not allow_faults:
            raise _stop(len(lost), source.folder, out)
    finished = tuple(PreparedPair(**done[pair.name]["pair"]) for pair in source.pairs if pair.name in done)
    if not finished:
        raise HidaError(f"no pair of '{source.folder}' could be prepared; see {out / FAULTS}.")
    PreparedSet(
        folder=out,
        source=source.source,
        size=FRAME[0],
        template=tuple(map(tuple, TEMPLATE.tolist())),
        fill={"photo": settings.fill_photo, "sketch": settings.fill_sketch},
        depth=settings.depth,
        styles=source.styles,
        pairs=finished,
    ).save()
    _remove_leftovers(out, finished)
    return PreparedSet.load(out)


def _prepare_pair(model: FaceModel, pair: SourcePair, out: Path, settings: Settings) -> dict[str, Any] | Fault:
    """Write the three PNGs of a pair; return its journal entry, or why it cannot be prepared."""
    try:
        photo, sketch = read_image(pair.photo), read_image(pair.sketch).convert("L")
    except ImageError as error:
        return Fault("unreadable", pair.name, str(error))
    faces = model.faces(np.asarray(photo))
    if not faces:
        where = f"{pair.photo.parent.name}/{pair.photo.name}"
        return Fault("no face", pair.name, f"no face was found in {where}: leave the pair out or give another photo.")
    points = np.asarray(faces[0].points, np.float64)
    try:
        matrix = placement(points, photo.size)
    except AlignmentError as error:
        return Fault("no alignment", pair.name, str(error))
    depth = np.zeros(FRAME[::-1], np.uint8)
    if settings.depth != "none":
        depth = np.rint(faces[0].depth(FRAME, matrix) * 255).astype(np.uint8)
    entry = PreparedPair(
        name=pair.name,
        split=pair.split,
        style=pair.style,
        **{folder: f"{folder}/{pair.name}.png" for folder in FOLDERS},
        matrix=matrix.tolist(),
        points=points.round(3).tolist(),
        faces=len(faces),
        attributes=_with_skin_tone(pair.attributes, np.asarray(photo)),
    )
    stamp = _stamp(pair)
    write_png(out / entry.photo, warp(photo, matrix, FRAME, settings.fill_photo), _COMPRESSION)
    write_png(out / entry.sketch, warp(sketch, matrix, FRAME, settings.fill_sketch), _COMPRESSION)
    write_png(out / entry.depth, depth, _COMPRESSION)
    return {"stamp": stamp, "pair": asdict(entry)}


def _with_skin_tone(attributes: Mapping[str, Any], photo: np.ndarray) -> dict[str, Any]:
    """Add the tone of the skin, where the attributes name a point on it: the frame may not have that point."""
    point = skin.annotated(attributes)
    return dict(attributes) if point is None else {**attributes, skin.KEY: skin.skin_tone(photo, point)}


_model: FaceModel  # of a worker process, which loads it at its start


def _start_worker(model: Callable[[], FaceModel]) -> None:
    """Load the model in a worker process, which leaves signals to its parent and computes with one thread."""
    global _model
    import torch

    for number in stops():  # they reach all processes of a terminal or a service
        signal.signal(number, signal.SIG_IGN)
    # A parent that is killed outright cannot end its workers.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _model = model()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread, as worker processes do: sums shared among threads are rounded differently."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """Wait for the parent process to end, then end this one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(work: Callable[[FaceModel, SourcePair], Any], pair: SourcePair) -> Any:
    return work(_model, pair)


def _run(
    work: Callable[[FaceModel, SourcePair], Any],
    pairs: list[SourcePair],
    model: Callable[[], FaceModel],
    workers: int,
) -> Iterator[Any]:
    """Yield ``work(model, pair)`` for each pair as it is done, in this process when one worker is enough."""
    workers = min(workers, len(pairs))
    if workers <= 1:
        if pairs:
            with _one_thread():
                loaded = model()
                yield from (work(loaded, pair) for pair in pairs)
        return
    # Spawned, not forked: a fork of a process whose torch has threads can hang.
    context = multiprocessing.get_context("spawn")
    with spawning():  # a helper with the pool, workers with the first tasks
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(model,))
        tasks = [pool.submit(_work, work, pair) for pair in pairs]
    try:
        for future in as_completed(tasks):
            yield future.result()
    except BrokenProcessPool:
        raise HidaError(
            "a worker process died, perhaps for lack of memory; give the command again, with fewer --workers: "
            "it continues where it was."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _stamp(pair: SourcePair) -> list[Any]:
    """Return what shows that a source pair is still the one that was prepared: split, style, sizes and times."""
    files = [path.stat() for path in (pair.photo, pair.sketch)]
    return [pair.split, pair.style, *(number for file in files for number in (file.st_size, file.st_mtime_ns))]


def _read_journal(out: Path, settings: Settings, pairs: Iterable[SourcePair]) -> dict[str, dict[str, Any]]:
    """Return the journal's entries, by name, of pairs that are finished and unchanged under the same settings."""
    try:
        first, *lines = (out / JOURNAL).read_bytes().splitlines()
        if parse_json(first).raw != settings.stamp():
            print("note: the settings differ from the last run's: every pair is prepared again.", file=sys.stderr)
            return {}
    except (OSError, ValueError, DocumentError):
        return {}
    entries = {}
    for line in lines:
        # The last line of a killed run may be torn; a pair whose line is damaged is prepared again.
        with contextlib.suppress(DocumentError):
            entry = parse_json(line)
            name = PreparedPair.read(entry.field("pair"), MOST).name
            entries[name] = {"stamp": entry.field("stamp").raw, "pair": entry.field("pair").raw}
    return {
        pair.name: entries[pair.name]
        for pair in pairs
        if pair.name in entries
        and entries[pair.name]["stamp"] == _stamp(pair)
        # An earlier version did not measure the skin.
        and (skin.annotated(pair.attributes) is None or skin.KEY in entries[pair.name]["pair"].get("attributes", {}))
        and all((out / folder / f"{pair.name}.png").is_file() for folder in FOLDERS)
    }


def _write_journal(out: Path, settings: Settings, entries: Iterable[dict[str, Any]]) -> None:
    lines = [json.dumps(settings.stamp()), *(json.dumps(entry) for entry in entries)]
    write_bytes(out / JOURNAL, ("\n".join(lines) + "\n").encode())


def _remove_leftovers(out: Path, pairs: Iterable[PreparedPair]) -> None:
    """Delete PNGs of pairs that are no longer in the set, and what a killed run left unfinished."""
    names = {f"{pair.name}.png" for pair in pairs}
    for folder in FOLDERS:
        remove_leftovers(out / folder)
    for path in (path for folder in FOLDERS for path in (out / folder).glob("*.png")):
        if path.name not in names:
            path.unlink()


def _report(faults: Sequence[Fault], notes: Sequence[str] = ()) -> None:
    for fault in faults[:_SHOWN_FAULTS]:
        print(f"fault: {fault}", file=sys.stderr)
    if len(faults) > _SHOWN_FAULTS:
        print(f"… and {len(faults) - _SHOWN_FAULTS:,} more.", file=sys.stderr)
    for note in notes:
        print(f"note: {printed(note)}", file=sys.stderr)


def _stop(count: int, source: Path, out: Path) -> HidaError:
    faults = "1 fault" if count == 1 else f"{count:,} faults"
    return HidaError(
        f"{faults} in '{source}', named above and listed in '{out / FAULTS}'; "
        "correct them, or pass --allow-faults to leave those pairs out."
    )


def _stop_here(number: int, frame: object) -> None:
    """Turn a signal to stop into one sentence; what is finished is in the journal."""
    raise Interrupted("stopped; give the same command again to continue.", number)
