"""Small tars as their authors' own scripts write them, and raw headers for those that nobody should write."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_shards.foreign import ForeignShards

BLOCK = 512

LAYOUTS = ("unimed", "biomedica", "clip_benchmark", "img2dataset")


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (20, 16)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.DEFAULT_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


def write_webdataset(path: Path, samples: Iterable[Mapping[str, Any]]) -> Path:
    """With webdataset's own writer, as BIOMEDICA, CLIP_benchmark and img2dataset do."""
    from webdataset import TarWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(dict(sample))
    return path


def unimed(path: Path, count: int = 6, separator: str = "_radimagenet_") -> Path:
    """UniMed-CLIP: files copied under the name .jpg, whatever they are, and captions joined in one .txt."""
    members = []
    for i in range(count):
        words = "".join(f"CT of organ {i}, wording {k}.{separator}" for k in range(12))
        members += [(f"{i:06d}.jpg", picture(i, "PNG" if i % 2 else "JPEG")), (f"{i:06d}.txt", words.encode())]
    return write_tar(path, members)


def biomedica_json(i: int) -> dict[str, Any]:
    """Its fields, 24 of the json (caption, image and key are the others)."""
    return {
        "image_file_name": f"SECRET-file-{i}.jpg",
        "image_cluster_id": f"c{i}",
        "image_hash": f"hash{i}",
        "image_label_id": "7",
        "image_panel_type": "multiple",
        "image_panel_subtype": "single panel",
        "image_primary_label": ["Clinical Imaging"] if i % 2 else ["Microscopy"],
        "image_secondary_label": ["computerized tomography", ""],
        "image_size": [20, 16],
        "image_set": [{"SECRET": i}],
        "image_context": {f"c{i}": ["SECRET mention"]},
        "article_accession_id": f"PMC{100 + i // 2}",
        "article_title": "SECRET title",
        "article_journal": "Journal",
        "article_date": "1500000000",
        "article_abstract": "SECRET abstract",
        "article_mesh_terms": ["Humans", "Liver"],
        "article_keywords": [""],
        "article_reference_ids": ["SECRET"],
        "article_reference_count": "1",
        "article_reference_list": [{"SECRET": "x"}],
        "article_subject": ["SECRET subject"],
        "article_citation": "SECRET citation",
        "article_license": "CC BY" if i else "CC BY-NC",
        "article_text": "SECRET " * 50,
    }


def biomedica(path: Path, count: int = 6) -> Path:
    """BIOMEDICA: keys are batch-article-position-file, the json holds the whole article."""
    return write_webdataset(
        path,
        (
            {
                "__key__": f"3-PMC{100 + i // 2}-{i}-fig.v{i}",  # a file name may hold a dot
                "jpg": picture(i),
                "txt": f"Figure {i}. Axial CT of the liver.".encode(),
                "json": json.dumps(biomedica_json(i)),
            }
            for i in range(count)
        ),
    )


def clip_benchmark(root: Path, kind: str = "cls", counts: Mapping[str, int] = {"train": 5, "test": 3}) -> Path:
    """CLIP_benchmark: train/0.tar, test/0.tar, ...; kind "cls", "npy" (multilabel) or "txt" (retrieval)."""
    for split, count in counts.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        for shard, first in enumerate(range(0, count, 3)):
            samples: list[dict[str, Any]] = []
            for i in range(first, min(first + 3, count)):
                label = {
                    "cls": i % 2,
                    "npy": np.array([i % 2, 1, 0], np.int64),
                    "txt": f"a scan {i}\nanother view {i}".encode(),
                }[kind]
                samples.append({"__key__": f"s{i:07d}", "webp": picture(i, "WEBP"), kind: label})
            write_webdataset(root / split / f"{shard}.tar", samples)
        (root / split / "nshards.txt").write_text(f"{-(-count // 3)}\n")
    if kind != "txt":
        names = ["normal lung", "pneumonia"] if kind == "cls" else ["effusion", "heart", "nodule"]
        (root / "classnames.txt").write_text("\n".join(names) + "\n")
        (root / "zeroshot_classification_templates.txt").write_text("an X-ray of {c}.\n{c} on a radiograph.\n")
    if kind != "cls":
        (root / "dataset_type.txt").write_text({"npy": "multilabel", "txt": "retrieval"}[kind])
    return root


def img2dataset(folder: Path, count: int = 6) -> Path:
    """img2dataset: jpg, txt, json, and a .parquet and a _stats.json beside the tar."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metas = [
        {
            "caption": f"chest film {i}",
            "url": f"https://SECRET.example/DOE_JANE_{i}.jpg",
            "key": f"00000000{i}",
            "status": "success",
            "error_message": None,
            "width": 20,
            "height": 16,
            "original_width": 40,
            "original_height": 32,
            "exif": '{"Image Artist": "SECRET"}',
            "sha256": "SECRET",
        }
        for i in range(count)
    ]
    write_webdataset(
        folder / "00000.tar",
        (
            {"__key__": m["key"], "jpg": picture(i), "txt": m["caption"], "json": json.dumps(m, indent=4)}
            for i, m in enumerate(metas)
        ),
    )
    pq.write_table(pa.Table.from_pylist(metas), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    return folder


def header(name: bytes, size: int | bytes = 0, kind: bytes = b"0", magic: bytes = b"ustar\x0000") -> bytes:
    """A header with a right checksum, whatever it says. `size` may be the raw field."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:124] = b"0000644\x000000000\x000000000\x00"
    block[124:136] = field
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(body: bytes) -> bytes:
    return body + b"\0" * (-len(body) % BLOCK)


def raw(name: bytes, body: bytes, **fields: Any) -> bytes:
    return header(name, len(body), **fields) + padded(body)


def pax(records: Mapping[bytes, bytes], kind: bytes = b"x") -> bytes:
    body = b""
    for key, value in records.items():
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        body += str(length).encode() + rest
    return raw(b"pax", body, kind=kind)


END = b"\0" * (2 * BLOCK)


def npy(value: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, value, **options)
    return out.getvalue()


def captions(shards: ForeignShards, row: int) -> list[tuple[str, float]]:
    return [(c["text"], c["weight"]) for c in shards.json(row)["texts"]["captions"]]
