"""Published collections as data: a YAML says where their tables, scans, texts and splits are; one engine reads it.

`read_preset("ct-rate", folder)` gives its studies. A YAML of your own is named by its path; docs/sources.md says how.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.errors import DataError
from data_shards.sources.base import Listing

if TYPE_CHECKING:
    from data_shards.sources.presets.schema import Preset

__all__ = ["layout", "load_preset", "preset_names", "read_preset"]
FOLDER = Path(__file__).parent


def preset_names() -> list[str]:
    """The presets that are shipped."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """A shipped preset by name, or one of your own by the path of its YAML.

    Raises: DataError for an unknown name, with the known ones, and for a YAML that says something it may not.
    """
    import pydantic
    import yaml

    from data_shards.sources.presets.schema import Preset

    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if path.parent == FOLDER and path.stem not in preset_names():
        raise DataError(
            f"there is no preset {name!r}",
            fix=f"there are {', '.join(preset_names())}; python -m data_shards.sources says more, or name a YAML file",
        )
    try:
        return Preset.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"the preset cannot be read ({type(error).__name__})", fix="check its path and YAML") from None
    except pydantic.ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'preset'}: {e['msg']}" for e in error.errors())
        raise DataError(
            f"the preset is not understood: {told}",
            "studies could be paired with the wrong words",
            "compare it with a shipped one: python -m data_shards.sources NAME --yaml",
        ) from None


def read_preset(name: str, folder: Path) -> Listing:
    """The studies of a collection that lies in `folder` as it is published. See `engine.read`."""
    from data_shards.sources.presets.engine import read

    return read(load_preset(name), folder)


def layout(preset: Preset) -> str:
    """What a preset expects on disk, a line a path."""
    from data_shards.sources.presets.engine import expected

    lines = [f"{preset.name}: {preset.title}", f"  licence {preset.licence}; modality {preset.modality}"]
    lines += [f"  {path:<64} {what}" for path, what in expected(preset)]
    lines += [f"  note: {note}" for note in preset.notes]
    return "\n".join(lines)
