"""The one error that people are meant to read."""


class UserError(Exception):
    """Something a user can mend: where it is, what is wrong, and what to do about it."""

    def __init__(self, where: str, cause: str, remedy: str) -> None:
        self.where, self.cause, self.remedy = where, cause, remedy
        super().__init__(f"{where}: {cause}\n  remedy: {remedy}")

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        return type(self), (self.where, self.cause, self.remedy)  # it crosses process borders
