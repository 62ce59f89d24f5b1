"""The library's messages as they read on the command line.

Knows nothing of what they are about.
"""

import re

# Arguments of the library and what sets them here.
_OPTIONS = {
    "batch_size": "--batch-size",
    "device": "--device",
    "dimension": "--dim",
    "dtype": "--dtype",
    "max_chars": "--max-chars",
    "metadata_key": "--metadata-key",
    "mode": "--mode",
    "on_duplicate": "--on-duplicate",
    "overwrite": "--overwrite",
    "sample": "--sample",
    "shard_size": "--shard-size",
    "skip_empty": "--skip-empty",
    "task": "--task",
    "target_recall": "--recall",
}
_NAMES = "|".join(_OPTIONS)
_GIVEN = re.compile(rf"\b({_NAMES})=(True|\"[^\"]*\"|[\w-]+)(?: \(--[a-z-]+\))?")
_BARE = re.compile(r"\b(batch_size|max_chars|metadata_key|on_duplicate|shard_size|target_recall)\b")
_SUBJECT = re.compile(r"(?<![\w-])(dimension) is (?=-?\d+: )")
_PHRASES = {
    "Use update to replace its passage": "Give --update to replace its passage",
    "The wished recall is": "--recall is",
}


def as_options(message: str) -> str:
    """A message that names options where it names arguments of functions.

    "pass overwrite=True (--overwrite)" becomes "pass --overwrite", and "raise max_chars" becomes
    "raise --max-chars".
    """
    if message.startswith("where"):  # a condition that is not as it should be
        message = f"--{message}"
    for phrase, here in _PHRASES.items():
        message = message.replace(phrase, here)
    message = _GIVEN.sub(_option, message)
    message = _SUBJECT.sub(lambda found: f"{_OPTIONS[found[1]]} is ", message)
    return _BARE.sub(lambda found: _OPTIONS[found[1]], message)


def _option(found: re.Match[str]) -> str:
    name, value = _OPTIONS[found[1]], found[2].strip('"')
    return name if value == "True" else f"{name} {value}"
