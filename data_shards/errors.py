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

    def __reduce__(self) -> tuple[type["DataError"], tuple[str, str, str]]:
        # The default would rebuild it from the joined message; workers send these across processes.
        return (DataError, (self.what, self.why, self.fix))
