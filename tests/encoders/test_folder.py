"""What a release folder is made of, and each way of not being one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import encoders
from encoders.dual import DualEncoder
from encoders.errors import ReleaseError
from encoders.folder import inspect, written_aside

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def folder(released: tuple[Path, DualEncoder]) -> Path:
    return released[0]


def refused(folder: Path, said: str, **kwargs: bool) -> None:
    """Loading is refused in three parts."""
    with pytest.raises(ReleaseError, match=said) as caught:
        encoders.load(folder, **kwargs)
    assert "\n  why: " in str(caught.value) and "\n  fix: " in str(caught.value)


def test_every_file_is_listed_with_its_hash(folder: Path) -> None:
    listing = json.loads((folder / "release.json").read_text())
    on_disk = {p.name for p in folder.iterdir()} - {"release.json"}
    assert set(listing["files"]) == on_disk == {WEIGHTS, "open_clip_config.json", "README.md"}
    for name, entry in listing["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert inspect(folder).sha256 == hashlib.sha256((folder / "release.json").read_bytes()).hexdigest()


def test_nothing_is_left_beside_it(folder: Path) -> None:
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_missing_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    refused(folder, f"no weights: {WEIGHTS} is missing")
    refused(folder, f"no weights: {WEIGHTS} is missing", verify=False)


def test_weights_that_were_never_listed(folder: Path) -> None:
    listing = json.loads((folder / "release.json").read_text())
    del listing["files"][WEIGHTS]
    (folder / WEIGHTS).unlink()
    (folder / "release.json").write_text(json.dumps(listing))
    refused(folder, f"no weights: {WEIGHTS} is missing")


@pytest.mark.parametrize("name", ["training_args.bin", "model.safetensors", ".hidden", "logs/events.txt"])
def test_stray_files(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    refused(folder, f"stray files in the release: {name}")
    refused(folder, f"stray files in the release: {name}", verify=False)


def test_all_stray_files_are_named(folder: Path) -> None:
    (folder / "b.bin").write_bytes(b"")
    (folder / "a.pth").symlink_to(folder / "nowhere")
    refused(folder, r"stray files in the release: a\.pth, b\.bin")


def test_another_missing_file(folder: Path) -> None:
    (folder / "README.md").unlink()
    refused(folder, "lacks files it lists: README.md")


def test_flipped_byte(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    refused(folder, f"not what was released: {WEIGHTS}")


def test_truncated_weights(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-100])
    refused(folder, f"not what was released: {WEIGHTS}")
    refused(folder, f"not what was released: {WEIGHTS}", verify=False)


def test_edited_config(folder: Path) -> None:
    path = folder / "open_clip_config.json"
    path.write_text(path.read_text().replace("-1000.0", "-1001.0"))
    refused(folder, "not what was released: open_clip_config.json")


def test_no_listing(folder: Path) -> None:
    (folder / "release.json").unlink()
    refused(folder, "has no release.json: it is not a release of this project")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "release.json is not readable JSON"),
        ("[]", "release.json is not a JSON object"),
        ('{"schema_version": 2}', "schema version 2, this program reads 1"),
        ('{"schema_version": 1, "kind": "onnx", "files": {}}', "release.json is damaged"),
        ('{"schema_version": 1, "kind": "clip", "files": {"../x": {}}}', "release.json is damaged"),
        ('{"schema_version": 1, "kind": "clip", "files": {"/etc/x": {}}}', "release.json is damaged"),
    ],
)
def test_damaged_listing(folder: Path, text: str, said: str) -> None:
    (folder / "release.json").write_text(text)
    refused(folder, said)


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no release folder at")


def test_moving_a_release_is_free(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "elsewhere")
    assert encoders.load(moved).kind == "clip"
    copied = shutil.copytree(moved, tmp_path / "copy")
    assert encoders.load(copied).sha256 == encoders.load(moved).sha256


def test_an_interrupted_write_leaves_what_was_there(folder: Path) -> None:
    before = inspect(folder).sha256

    def interrupted() -> None:
        with written_aside(folder, "clip", overwrite=True) as aside:
            (aside / "half").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert inspect(folder).sha256 == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_overwriting_replaces_a_release_whole(folder: Path) -> None:
    with written_aside(folder, "clip", overwrite=True) as aside:
        (aside / WEIGHTS).write_bytes(b"new")
    assert inspect(folder).files.keys() == {WEIGHTS}
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_overwriting_deletes_nothing_else(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ReleaseError, match=r"holds what no release wrote: notes\.txt"):
        with written_aside(folder, "clip", overwrite=True):
            pass
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    with pytest.raises(ReleaseError, match=r"holds what no release wrote: thesis\.tex"):
        with written_aside(tmp_path / "home", "clip", overwrite=True):
            pass
    assert (folder / "notes.txt").is_file() and (tmp_path / "home" / "thesis.tex").is_file()


def test_a_file_system_that_refuses_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ReleaseError, match="could not be written"):
        with written_aside(tmp_path / "file" / "release", "clip", overwrite=False):
            pass
