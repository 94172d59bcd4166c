"""What an index is, from its manifest and the record of its calibration: no model, no vectors, no graph is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msgspec import structs

from funnel.engine.coarse import check_coarse
from funnel.planning.calibration import SMALLEST_PLANNED, check_record, read_json
from funnel.storage import IndexFolder, Manifest
from funnel.storage.layout import split_path
from indexes import CoarseIndexError, MissingBackendError, family

__all__ = ["Info", "read_info", "said_bytes"]

CALIBRATION = "calibration.json"
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Info:
    """One generation of an index.

    kept: share of the true top 10, by the rows as given, that exact search over the stored rows returns, and
    float16_kept what it would over float16, where that was measured to choose the dtype; None where they were not.
    sizes: bytes on disk by file name, of the live generation, all segments together. other_bytes: of everything else in
    the folder: manifests, older generations. held_bytes: in memory while open, mapped files apart; None
    where the coarse index's library is not installed. held_measured: whether of the index that is open, or from its
    settings. touched_bytes: of its mapped files, what is in memory for this process; None where it is not open, or the
    system does not say. calibration: kind, date, queries and machine; None where the index is small enough for flat
    search.
    """

    path: str
    generation: int
    created: str
    format_version: int
    rows: int
    deleted: int
    segments: int
    dims: int
    ladder: tuple[int, ...]
    dtype: str
    kept: float | None
    float16_kept: float | None
    documents: bool
    encoder: str | None
    query_prompt: str | None
    document_prompt: str | None
    adaptor: Mapping[str, Any]
    coarse: Mapping[str, Any]
    calibration: Mapping[str, Any] | None
    sizes: Mapping[str, int]
    other_bytes: int
    held_bytes: int | None
    held_measured: bool
    touched_bytes: int | None
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return {**asdict(self), "ladder": list(self.ladder)}

    def __str__(self) -> str:
        return "\n".join(f"{name:<12} {value}" for name, value in _lines(self))


def _encoder(info: Info) -> str:
    prompts = {"queries": info.query_prompt, "documents": info.document_prompt}
    said = [f"{prompt!r} before {what}" for what, prompt in prompts.items() if prompt]
    return ", ".join([info.encoder or "none: built from vectors", *said])


def read_info(path: str | os.PathLike[str], held_bytes: int | None = None, touched_bytes: int | None = None) -> Info:
    """What the live generation of the index in a folder is.

    held_bytes, touched_bytes: as measured, where the index is open.
    Raises NotAnIndexError, FormatVersionError, or DamagedIndexError naming the file.
    """
    folder = IndexFolder(path)
    manifest = folder.manifest()
    check_coarse(manifest, folder.path)
    settings = manifest.settings
    deleted = sum(part.rows for part in manifest.tombstones)
    sizes: dict[str, int] = {}
    for name, entry in manifest.files.items():
        sizes[split_path(name)[2]] = sizes.get(split_path(name)[2], 0) + entry.size
    return Info(
        path=str(folder.path),
        generation=manifest.generation,
        created=manifest.created,
        format_version=manifest.format_version,
        rows=sum(part.rows for part in manifest.segments) - deleted,
        deleted=deleted,
        segments=len(manifest.segments),
        dims=manifest.d,
        ladder=manifest.ladder,
        dtype=settings.dtype,
        kept=settings.kept,
        float16_kept=settings.float16_kept,
        documents=settings.documents,
        encoder=settings.encoder,
        query_prompt=settings.query_prompt,
        document_prompt=settings.document_prompt,
        adaptor=structs.asdict(settings.adaptor),
        coarse={
            "name": settings.coarse,
            "dims": manifest.coarse_width,
            "settings": settings.coarse_settings,
            "library": settings.coarse_library,
        },
        calibration=_calibration(folder.path, manifest),
        sizes=dict(sorted(sizes.items(), key=lambda item: -item[1])),
        other_bytes=max(0, _folder_bytes(folder.path) - sum(sizes.values())),
        held_bytes=_estimated(manifest) if held_bytes is None else held_bytes,
        held_measured=held_bytes is not None,
        touched_bytes=touched_bytes,
        versions=dict(manifest.versions),
    )


def _calibration(path: Path, manifest: Manifest) -> dict[str, Any] | None:
    if manifest.calibration is None:
        return None
    file = path / "calibrations" / manifest.calibration / CALIBRATION
    record = read_json(file)
    check_record(record, file)
    return {
        "kind": record["kind"],
        "date": record["date"],
        "queries": record["n_queries"],
        "corpus_rows": record["n_corpus_rows"],
        "machine": record["costs"]["machine"],
    }


def _estimated(manifest: Manifest) -> int | None:
    """Coarse index and norms as the settings give them; what exact search keeps once it was used is not in it."""
    settings, width = manifest.settings, manifest.coarse_width
    rows, ladder = sum(part.rows for part in manifest.segments), manifest.ladder
    try:
        kind = family(settings.coarse)
        coarse = kind.estimate_nbytes(rows, width, kind.complete_settings(settings.coarse_settings))
    except (CoarseIndexError, MissingBackendError):
        return None
    return coarse + FLOAT32_BYTES * rows * sum(w > width for w in ladder[:-1])


def _folder_bytes(path: Path) -> int:
    total = 0
    for root, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):  # a writer tidies at the same time
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def said_bytes(count: int) -> str:
    """A size as it is read: bytes, KB or MB."""
    if count < 1_000:
        return f"{count} bytes"
    return f"{count / 1e3:,.1f} KB" if count < 1_000_000 else f"{count / 1e6:,.1f} MB"


def _lines(info: Info) -> list[tuple[str, str]]:
    adaptor, coarse, calibration = info.adaptor, info.coarse, info.calibration
    many = f" in {info.segments} segments" if info.segments > 1 else ""
    gone = f", {info.deleted:,} deleted" if info.deleted else ""
    share, over, of = info.kept, "exact search over it keeps", ""
    if info.dtype == "float32":  # the rows as given
        share, over, of = info.float16_kept, "float16 would keep", " of held-out rows"
    kept = "" if share is None else f" ({over} {share:.4f} of the true top 10{of})"
    settings = ", ".join(f"{name} {value}" for name, value in coarse["settings"].items())
    full = "full width unchanged" if adaptor["isometric"] else "full width changed"
    lines = [
        ("index", f"{info.path}, generation {info.generation}, format {info.format_version}, made {info.created}"),
        ("rows", f"{info.rows:,} of {info.dims} dims as {info.dtype}{kept}{many}{gone}"),
        ("documents", "titles, texts, metadata" if info.documents else "none: bare vectors"),
        ("encoder", _encoder(info)),
        ("ladder", ", ".join(map(str, info.ladder))),
        ("adaptor", f"{adaptor['why']}; {full}"),
        ("coarse", f"{coarse['name']} over {coarse['dims']} dims{f' ({settings})' if settings else ''}"),
    ]
    if calibration is None:
        outgrown = info.segments > 1 and info.rows >= SMALLEST_PLANNED
        why = "funnel compact plans for what was added; until then" if outgrown else "small enough for"
        lines.append(("calibration", f"none: {why} flat search, which is exact"))
    else:
        machine = ", ".join(f"{name} {value}" for name, value in calibration["machine"].items())
        of = f"{calibration['queries']:,} queries, {calibration['corpus_rows']:,} held-out rows"
        lines.append(("calibration", f"{calibration['kind']}: {of}, {calibration['date']}"))
        lines.append(("machine", machine))
    if info.held_bytes is not None:
        said = "" if info.held_measured else " by its settings"
        touched = "" if info.touched_bytes is None else f"; {said_bytes(info.touched_bytes)} of mapped files touched"
        lines.append(("memory", f"{said_bytes(info.held_bytes)} held{said}{touched}"))
    total = sum(info.sizes.values())
    lines.append(("disk", f"{said_bytes(total)}, and {said_bytes(info.other_bytes)} of manifests and what is older"))
    return [*lines, *(("", f"{said_bytes(size):>12}  {name}") for name, size in info.sizes.items())]
