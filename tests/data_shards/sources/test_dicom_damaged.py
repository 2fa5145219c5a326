"""Files of a PACS export that are cut off, and studies that cannot be used."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pydicom
import pytest
from pydicom.datadict import tag_for_keyword

from data_shards import DataError
from data_shards.sources.base import Listing
from data_shards.sources.dicom_tree import read_dicom_tree
from tests.data_shards.dicom_files import body, dataset, save, series, study
from tests.data_shards.sources.test_dicom_tree import flat


def test_studies_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    ct = body()
    save(series(ct, **study(1)), tmp_path / "good")
    two = series(ct, **study(2))
    two[3].PatientID = "ANOTHER"
    save(two, tmp_path / "two")
    save(series(ct, **study(3, PatientID=None)), tmp_path / "nobody")
    lost = series(ct, **study(4))
    for item in lost:
        del item.ImagePositionPatient
    save(lost, tmp_path / "lost")
    cut = min(save(series(ct, **study(5)), tmp_path / "cut").iterdir())
    cut.write_bytes(cut.read_bytes()[: at(cut, "Columns")])  # ends within the header, after the UIDs
    torn = min((tmp_path / "good").iterdir())
    (tmp_path / "torn").write_bytes(torn.read_bytes()[:200])
    listing: Listing = read_dicom_tree(tmp_path)
    assert [row.id for row in listing.rows] == ["1.2.1"]
    assert [r.reason for r in listing.refused] == [
        "1 damaged DICOM files, of which nobody knows the study",
        "images of 2 patients in one study",
        "no PatientID: whether it shares its patient with another study is unknown",
        "no series of it is a volume or a radiograph",
        "no series of it is a volume or a radiograph",
    ]
    torn_note = "left out: 1 series (9 files): a file of it cannot be used: an image's file ends before its pixels"
    assert torn_note in listing.notes
    told = " ".join([*listing.notes, *(r.reason for r in listing.refused)])
    assert "9 files): a file of it cannot be used: a slice has no position, direction or spacing" in told
    assert not any(word in told for word in ("Doe", "PID", "ACC", "ANOTHER", str(tmp_path)))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a").write_text("x")
    with pytest.raises(DataError, match="none of the 1 files below the folder is DICOM"):
        read_dicom_tree(tmp_path / "none")


def at(file: Path, name: str) -> int:
    """Where an element of a file of explicit little endian begins."""
    tag = tag_for_keyword(name)
    assert tag is not None
    found = re.search(re.escape(struct.pack("<HH", tag >> 16, tag & 0xFFFF)) + rb"[A-Z]{2}", file.read_bytes())
    assert found is not None
    return found.start()


@pytest.mark.parametrize(
    "element", ["SeriesInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsStored", "PixelData"]
)
def test_a_file_cut_in_its_header_takes_its_series_along(element: str, tmp_path: Path) -> None:
    """Without it, the other slices would pass for a shorter scan. Where its series is unknown, no series is used."""
    flat(tmp_path, series(body(), **study(1)) + series(body(), **study(1, SeriesInstanceUID="1.2.1.2")))
    victim = min((tmp_path / "0" / "x").iterdir())
    lost = pydicom.dcmread(victim).SeriesInstanceUID
    whole, start = victim.read_bytes(), at(victim, element)
    for more in range(12):  # within the element's tag, its length, its value
        victim.write_bytes(whole[: start + more])
        listing = read_dicom_tree(tmp_path, series="all")
        if element == "SeriesInstanceUID":
            assert (listing.rows, len(listing.refused)) == ([], 1), more
            words = "left out: 2 series (17 files): a damaged file of the study may be of any of its series"
        else:
            ((scan,),) = (row.scans for row in listing.rows)
            assert len(scan.files) == 9, more
            assert lost not in {pydicom.dcmread(Path(scan.path) / name).SeriesInstanceUID for name in scan.files}
            words = "left out: 1 series (9 files): a file of it cannot be used: an image's file ends before its pixels"
        assert words in listing.notes, more


def test_spectra_have_no_pixels_and_are_whole(tmp_path: Path) -> None:
    spectrum = dataset(body()[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.4.2", Modality="MR", **study(1))
    del spectrum.PixelData
    spectrum.add_new(0x56000020, "OF", b"\0" * 64)
    save([spectrum], tmp_path)
    assert not any("ends before its pixels" in note for note in read_dicom_tree(tmp_path).notes)
