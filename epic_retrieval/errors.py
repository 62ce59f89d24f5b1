"""The errors that a user can meet. Each message says what was given, what was expected, what to do.

Knows nothing of models, prompts or indexes.
"""


class EpicError(Exception):
    """Base of every error that epic-retrieval raises on purpose."""


class InputError(EpicError, ValueError):
    """What the caller passed cannot be used: an empty text, an unknown task, a malformed file."""


class CheckpointError(EpicError):
    """A model folder is incomplete, unsupported, or lacks what a call needs, such as g."""


class PassageIndexError(EpicError):
    """An index folder is missing, half-built, damaged, or belongs to another encoder."""


class MissingExtraError(EpicError, ImportError):
    """An optional package is not installed; the message holds the pip command."""
