"""The errors a user can cause. Each message names the value, the limit and the remedy, in one line."""

from __future__ import annotations


class QamDetrError(Exception):
    """A mistake or a missing thing that the user can mend; shown as one line, never as a traceback.

    It says `what` is wrong, with value and limit, the `remedy` (may be empty), and begins with the `subject`, a file or folder as
    the user calls it (empty where it is about none).
    """

    exit_status = 2  # what a command that ends with the error returns to the shell
    _beginning = "{}"

    def __init__(self, what: str, remedy: str = "", subject: object = "") -> None:
        super().__init__(what, remedy, subject)
        self.what, self.remedy, self.subject = what, remedy, str(subject)

    def __str__(self) -> str:
        told = f"{self._beginning.format(self.subject)} {self.what}" if self.subject else self.what
        return f"{told.rstrip('.;')}; {self.remedy.rstrip('.')}." if self.remedy else told

    def about(self, subject: str) -> QamDetrError:
        """Return the same error for somebody who calls the file or folder by another name."""
        return type(self)(self.what, self.remedy, self.subject and subject)


class AudioError(QamDetrError):
    """A recording that cannot be read: missing, empty, corrupt, too short or too long."""


class ConfigError(QamDetrError):
    """A configuration with an unknown key, a wrong type or a value out of range."""


class DataError(QamDetrError):
    """A manifest, feature file or predictions file that does not follow its format."""


class CheckpointError(QamDetrError):
    """A checkpoint that is missing, incomplete or made for another model."""

    _beginning = "Checkpoint {}:"


class IncompleteError(QamDetrError):
    """The work is done, but for some inputs that were skipped."""

    exit_status = 1
