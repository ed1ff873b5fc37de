"""The errors a user can cause. Each message names the value, the limit and the remedy, in one line."""


class QamDetrError(Exception):
    """A mistake or a missing thing that the user can mend; shown as one line, never as a traceback."""

    exit_status = 2
    """What a command that ends with the error returns to the shell."""


class AudioError(QamDetrError):
    """A recording that cannot be read: missing, empty, corrupt, too short or too long."""


class ConfigError(QamDetrError):
    """A configuration with an unknown key, a wrong type or a value out of range."""


class DataError(QamDetrError):
    """A manifest, feature file or predictions file that does not follow its format."""


class FeatureValuesError(DataError):
    """Features of one recording or query that cannot be stored; others can."""


class CheckpointError(QamDetrError):
    """A checkpoint that is missing, incomplete or made for another model."""


class IncompleteError(QamDetrError):
    """The work is done, but for some inputs that were skipped."""

    exit_status = 1
