"""Which options fit which kind of source: any other one is refused, never ignored."""

from __future__ import annotations

import argparse

from data_shards.errors import DataError
from data_shards.sources.report_table import JOINS
from data_shards.sources.table_spec import words

_DRAWN = {"val_fraction", "test_fraction"}
_WORDS = {"text_columns", "label_columns", "meta_columns", "known_columns"}
_SPLIT = {"split_column", "split_file", "split_by", *_DRAWN}
_IMAGE = {"root", "image_column", "image_template", "image_columns", "image_roles", "image_phases"}
_CELLS = {"slope_column", "intercept_column", "spacing_columns", "modality_column", "phase_column"}
_TREE = {"series", "study_id", "modalities", "split_file", *_DRAWN}

# Of the options that are for some sources only (data_shards.build_options has the others), those of each kind.
FITTING = {
    "a table": {*_IMAGE, *_CELLS, *_WORDS, *_SPLIT, "id_column", "patient_column", "group_column"},
    "a folder of DICOM files with --reports": {*_TREE, *_WORDS, *_SPLIT, "reports", "join", "join_columns"},
    "a folder of DICOM files without --reports": {*_TREE},
    "published tars": {"layout", "patient_field", *_DRAWN},
    "a MedMNIST archive": set[str](),
    "a collection (--preset)": {"preset", "scans"},
}
_SOME = frozenset().union(*FITTING.values())


def require_fitting(args: argparse.Namespace, kind: str, defaults: argparse.ArgumentParser) -> None:
    """Raise DataError for an option that says something to a kind of source (a key of FITTING) that has no use for it,
    and for a kept column that a report is found by. defaults: a parser with the options."""
    strange = sorted(
        name for name in _SOME - FITTING[kind] if getattr(args, name, None) not in (None, defaults.get_default(name))
    )
    if strange:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in strange)
        homes = [other for other, own in FITTING.items() if own.issuperset(strange)]
        raise DataError(
            f"the source is {kind}, which has no use for {named}",
            "what you asked for would be ignored",
            f"leave it out{'; it is for ' + ' or '.join(homes) if homes else ''}",
        )
    if "join" in FITTING[kind]:
        keys = {*(words(args.join_columns) or JOINS[args.join]), *words(args.known_columns)}
        if kept := [column for column in words(args.meta_columns) if column in keys]:
            raise DataError(
                f"--meta-columns names {kept}, which identify the patient or the study",
                "they would reach whoever gets the shards",
                "leave them out; keys and patients are kept as salted hashes",
            )
