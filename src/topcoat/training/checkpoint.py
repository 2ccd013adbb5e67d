"""Save and resume so that a crash at any moment leaves a checkpoint that is whole: the old one or the new one.

Into a temporary folder: tensors as safetensors, the rest as JSON, each fsynced and read back; the manifest last; one
rename publishes it; the parent's fsync makes it last. Only then are older ones deleted. Resuming trusts no name and no
`latest` file: it goes through the folders newest first, verifies every byte, and takes the first that is good.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from topcoat.disk_errors import DiskFull, disk_error, free_bytes
from topcoat.errors import Problem, TopcoatError
from topcoat.files import discard, publish_directory, sha256_file, sweep_temporaries, write_new
from topcoat.model.safetensors_source import SafeTensor, read_tensors
from topcoat.training import manifest as manifests
from topcoat.training.manifest import Damaged, FileRecord, Manifest
from topcoat.training.tensor_file import missing_or_changed, on_host, outline, pieces, read_into, require_fit
from topcoat.units import show_bytes

STATE = "state.json"
TENSORS = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, every byte of it verified. Its tensors are still on the disk: `read` puts them into place."""

    state: dict[str, Any]
    path: Path
    manifest: Manifest
    stored: dict[str, list[SafeTensor]]
    """File stem -> what its header says."""
    skipped: list[str] = field(default_factory=list)
    """Newer ones that were passed over, each with the reason."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.manifest.step

    @property
    def best(self) -> bool:
        """Whether its validation loss was the lowest so far."""
        return self.manifest.best

    def read(self, stem: str, into: Mapping[str, Tensor], after_chunk: Callable[[], None] = lambda: None) -> None:
        """Fill the tensors `into` with those of the file `stem`, without holding them twice.

        `after_chunk` is called every few MiB. The bytes are hashed again as they pass.

        Raises:
            TopcoatError: the file holds other tensors (nothing is changed then), or it changed since it was verified
                (what is in `into` is then of no use).
        """
        name = f"{stem}{TENSORS}"
        require_fit(into, outline(self.stored[stem]), f"{name} of {self.path.name}")
        try:
            with manifests.opened(self.path) as (descriptor, manifest):
                if manifest != self.manifest:
                    raise Damaged(f"{manifests.NAME} is another one")
                with manifests.reading(descriptor, manifest, name) as file:
                    read_into(file, self.stored[stem], into, after_chunk)
        except Damaged as damage:
            raise TopcoatError(
                f"{self.path.name} changed while it was read: {damage}",
                str(self.path),
                "resume again: what is damaged is passed over for the checkpoint before it",
            ) from damage


class Checkpoints:
    """The `checkpoints/` folder of one run. The writer holds the run's lock; reading needs none and changes nothing."""

    def __init__(self, folder: Path, keep: int, run_id: str, identity: Mapping[str, str]) -> None:
        """`keep` newest ones stay, besides the best and the one resumed from. `identity` holds fingerprints."""
        self.folder = folder
        self.keep = max(keep, 1)
        self.run_id = run_id
        self.identity = dict(identity)
        self.skipped: list[str] = []
        """What the last `newest()` or `best()` passed over, and why; also when nothing good was found."""
        self.left_over: list[str] = []
        """What the last save could not delete, and why. The save itself is done."""
        self._resumed_from: Path | None = None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: dict[str, Any],
        *,
        best: bool,
        after_chunk: Callable[[], None] = lambda: None,
    ) -> Path:
        """Write `step-00000120/` with one safetensors file a stem and state.json; then delete what is too old.

        `state` holds what JSON can: dicts with text keys, lists, text, numbers, booleans, None; tuples come back as
        lists. The same tensors and state give the same bytes. `after_chunk` is called every few MiB, so that tensors
        which are mapped files need not be in memory as a whole.

        Raises:
            DiskFull: the disk did not take it; nothing of it is left, older ones are untouched, and it can be retried.
            TopcoatError: the folder cannot be written at all, or a tensor is missing in what was written.
        """
        final = self.folder / f"step-{step:08d}"
        host = {f"{stem}{TENSORS}": on_host(part) for stem, part in tensors.items()}
        text = json.dumps(state, sort_keys=True, separators=(",", ":")).encode()
        need = len(text) + sum(tensor.nbytes for part in host.values() for tensor in part.values())
        try:
            sweep_temporaries(self.folder)
            self._set_aside(final)
        except OSError as error:
            raise disk_error(error, final, need) from error
        with publish_directory(final, need) as temporary:
            files = {name: _write_tensors(temporary / name, part, after_chunk) for name, part in sorted(host.items())}
            files[STATE] = _write_checked(temporary / STATE, [text])
            whole = Manifest(step=step, best=best, run_id=self.run_id, identity=self.identity, files=files)
            write_new(temporary / manifests.NAME, [whole.to_bytes()])
        self._rotate(final)
        return final

    def require_room(self, first: Path) -> None:
        """Ask, once the `first` checkpoint is saved, whether the disk can hold all that the run will keep.

        Kept are `keep` newest and the best, and while one is written one more.

        Raises:
            DiskFull: it cannot.
        """
        size = sum(path.stat().st_size for path in first.iterdir())
        need, free = (self.keep + 1) * size, free_bytes(first)
        if free is not None and free < need:
            raise DiskFull(
                f"checkpoints need {show_bytes(need)} more ({self.keep + 1} of {show_bytes(size)}), "
                f"{show_bytes(free)} free",
                str(self.folder),
                "free space on that disk, lower train.keep_checkpoints, or put the output on another disk",
                need=need,
                free=free,
                errno=errno.ENOSPC,
            )

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, verified byte by byte; None when there is none (see `skipped`).

        Raises:
            TopcoatError: it was made from something else: another base, configuration, data.
        """
        return self._first_good(best_only=False)

    def best(self) -> Checkpoint | None:
        """The checkpoint with the lowest validation loss, verified; None when no good one is marked so."""
        return self._first_good(best_only=True)

    def _first_good(self, *, best_only: bool) -> Checkpoint | None:
        self.skipped = []
        for path in self._newest_first():
            try:
                with manifests.opened(path) as (descriptor, manifest):
                    if manifest.run_id != self.run_id:
                        raise Damaged(f"it belongs to another run ({manifest.run_id}, not {self.run_id})")
                    if best_only and not manifest.best:
                        continue
                    manifests.verify(descriptor, manifest)
                    state, stored = _read_state(descriptor, manifest), _headers(path, manifest)
            except Damaged as damage:
                self.skipped.append(f"{path.name} is not usable: {damage}")
                continue
            self._require_same_origin(manifest, path)
            if not best_only:
                self._resumed_from = path
            return Checkpoint(state, path, manifest, stored, list(self.skipped))
        return None

    def _require_same_origin(self, manifest: Manifest, path: Path) -> None:
        then, now = manifest.identity, self.identity
        problems = [
            Problem(
                f"{key} changed since step {manifest.step}: {then.get(key, 'unset')} then, {now.get(key, 'unset')} now",
                str(path),
                f"give the {key} of that time again, or start a new run in another output folder",
            )
            for key in sorted(set(then) | set(now))
            if then.get(key) != now.get(key)
        ]
        if problems:
            raise TopcoatError.gather(problems)

    def _newest_first(self) -> list[Path]:
        """Everything named like a checkpoint; one that was set aside comes right after the one that replaces it."""
        try:
            found = [(m, self.folder / m[0]) for n in os.listdir(self.folder) if (m := manifests.FOLDER.fullmatch(n))]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise TopcoatError(
                f"the checkpoints cannot be listed: {error.strerror}", str(self.folder), "let this user read the folder"
            ) from error
        return [path for _, path in sorted(found, key=lambda item: (-int(item[0][1]), item[0][2] or ""))]

    def _set_aside(self, final: Path) -> None:
        """Make the name free: a bad one of this step is deleted, a good one stays readable until the new one is there.

        A run that fell back to an older checkpoint meets the bad one again; a last step may be saved twice.
        """
        if not os.path.lexists(final):
            return
        replaced = final.with_name(f"{final.name}.replaced")
        if not _is_good(final):
            discard(final)
            return
        if os.path.lexists(replaced):
            discard(replaced)
        os.rename(final, replaced)

    def _rotate(self, saved: Path) -> None:
        """Delete what is too old: all but the `keep` newest whole ones, the best, and the one resumed from.

        `saved` was read back a moment ago. Whole means manifest, names and sizes here: a broken one counts for nothing,
        so it never pushes out a good one. Failing to delete is told and does not undo the save.
        """
        self.left_over = []
        kept, best_seen = 0, False
        for path in self._newest_first():
            whole = _outline(path)
            if whole is not None and whole.run_id != self.run_id:
                continue  # somebody else's: neither counted nor touched
            first_best = whole is not None and whole.best and not best_seen
            best_seen |= first_best
            replaced = path == saved.with_name(f"{saved.name}.replaced")
            if replaced or (kept >= self.keep and not first_best and path not in (saved, self._resumed_from)):
                try:
                    discard(path)
                except OSError as error:
                    self.left_over.append(f"{path.name} could not be deleted: {error.strerror}")
            else:
                kept += whole is not None


def _write_checked(
    path: Path, parts: list[bytes | memoryview], after_chunk: Callable[[], None] = lambda: None
) -> FileRecord:
    """Write, fsync, read back from the disk and compare."""
    digest = write_new(path, parts, after_chunk)
    if sha256_file(path) != digest:
        raise OSError(errno.EIO, "what was read back is not what was written", str(path))
    return FileRecord(bytes=path.stat().st_size, sha256=digest)


def _write_tensors(path: Path, tensors: dict[str, Tensor], after_chunk: Callable[[], None]) -> FileRecord:
    record = _write_checked(path, pieces(tensors), after_chunk)
    if wrong := missing_or_changed(path, tensors):
        raise TopcoatError(
            f"{path.name} was written with {len(wrong)} of {len(tensors)} tensors missing or changed (first: "
            f"{wrong[0]}); not publishing it",
            str(path.parent.parent),
            "report this: it is an error in Topcoat",
        )
    return record


def _read_state(descriptor: int, manifest: Manifest) -> dict[str, Any]:
    if STATE not in manifest.files:
        return {}
    with manifests.reading(descriptor, manifest, STATE) as file:
        data = file.read(-1)
    try:
        state: dict[str, Any] = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{STATE} cannot be parsed: {error}") from error
    return state


def _headers(path: Path, manifest: Manifest) -> dict[str, list[SafeTensor]]:
    found: dict[str, list[SafeTensor]] = {}
    for name in manifest.files:
        if name != STATE:
            try:
                found[name.removesuffix(TENSORS)] = read_tensors(path / name)
            except TopcoatError as error:
                raise Damaged(f"{name} cannot be parsed: {error.problems[0].what}") from error
    return found


def _outline(path: Path) -> Manifest | None:
    with suppress(Damaged), manifests.opened(path) as (_, manifest):
        return manifest
    return None


def _is_good(path: Path) -> bool:
    try:
        with manifests.opened(path) as (descriptor, manifest):
            manifests.verify(descriptor, manifest)
    except Damaged:
        return False
    return True
