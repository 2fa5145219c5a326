"""The error of this package: three parts, so that whoever meets it knows what to do next."""


class DataError(ValueError):
    """Data that must not enter training. Messages name the problem, never a patient, a report or a file's path.

    Args:
        what: what is wrong, with the row key, shard or column that shows it.
        why: what would happen if it were let through.
        fix: what to do about it.
    """

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        lines = [what, *(f"  why: {why}" for _ in [0] if why), *(f"  fix: {fix}" for _ in [0] if fix)]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type["DataError"], tuple[str, ...]]:
        # The default would rebuild it from the joined message; workers send these across processes.
        return type(self), (self.what, self.why, self.fix)


class UndecodableError(DataError):
    """An image that does not decode whole, by whoever does not know which sample it is; a stream makes a DamagedError
    of it."""


class DamagedError(DataError):
    """Stored bytes of a sample that are not what was written, or an image that does not decode: the one kind a stream
    may skip, up to a declared budget.

    Args:
        shard: file name of the shard, or of another file that holds the sample.
        key: the sample's (hashed) key, empty where the whole shard cannot be read.
    """

    def __init__(self, what: str, why: str = "", fix: str = "", shard: str = "", key: str = "") -> None:
        super().__init__(what, why, fix)
        self.shard, self.key = shard, key

    def __reduce__(self) -> tuple[type[DataError], tuple[str, ...]]:
        return type(self), (self.what, self.why, self.fix, self.shard, self.key)
