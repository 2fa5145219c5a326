"""Identifiers leave the hospital only as salted hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from data_shards.errors import DataError

SALT_ENV = "VOXCLIP_SALT"
SALT_FILE = ".voxclip-salt"


def hashed(value: str, salt: str) -> str:
    """16 hex digits of BLAKE2b keyed with the salt: equal for equal inputs, not reversible by listing all ids
    as long as the salt stays private."""
    key = hashlib.blake2b(salt.encode(), digest_size=32).digest()
    return hashlib.blake2b(value.encode(), key=key, digest_size=8).hexdigest()


def resolve_salt(beside: Path, salt: str | None = None) -> str:
    """The salt: the argument, else $VOXCLIP_SALT, else the file `.voxclip-salt` in the folder that holds `beside`.

    The file is made once with mode 0600. It lies next to the shard folder, not in it, so that handing the shards
    on does not hand on the means to undo the hashes; shard sets side by side share it, so their patients match.
    """
    chosen = salt if salt is not None else os.environ.get(SALT_ENV)
    if chosen is not None:
        if not chosen.strip():
            raise DataError(
                "the salt is empty",
                "unsalted hashes of patient numbers can be undone by trying all numbers",
                f"set {SALT_ENV} to a secret, or unset it to have one made",
            )
        return chosen
    path = beside.absolute().parent / SALT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(16) + "\n")
    return path.read_text().strip()
