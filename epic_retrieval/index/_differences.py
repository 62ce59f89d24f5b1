"""What keeps two sets of vectors apart, told setting by setting.

Knows nothing of folders.
"""

from epic_retrieval.index._batches import EncodingSettings
from epic_retrieval.index.manifest import EncoderInfo

_SHOWN = 12  # digits of a fingerprint


def encoder_differences(before: EncoderInfo, now: EncoderInfo) -> str:
    """In what two encoders differ, as "dimension 256, now 768"; nothing where they do not.

    Of a fingerprint nobody sees what went into it: where it alone differs, all that may have.
    """
    facts = [
        ("dimension", str(before.dimension), str(now.dimension)),
        ("task", before.task or "none", now.task or "none"),
    ]
    if before.fingerprint == now.fingerprint:
        # The same model may lie elsewhere.
        return _told(facts)
    facts.insert(0, ("model", f'"{before.name}"', f'"{now.name}"'))
    told = _told(facts)
    if told and only_task(before, now):
        # It enters the fingerprint.
        return told
    prints = f"fingerprint {before.fingerprint[:_SHOWN]}, now {now.fingerprint[:_SHOWN]}"
    if told:
        return f"{told}; {prints}"
    of_task = "" if now.task is None else ", or the task's instruction or demonstrations"
    return (
        f'{prints}, under the same name "{now.name}": its weights, tokenizer, passage template, '
        f"maximum length or pooling{of_task} have changed"
    )


def only_task(before: EncoderInfo, now: EncoderInfo) -> bool:
    """Whether two encoders differ in their task, and by all that can be seen in nothing else."""
    return before.task != now.task and (before.name, before.dimension) == (
        now.name,
        now.dimension,
    )


def incomparable(place: object, built: EncoderInfo, now: EncoderInfo) -> str:
    """The message of whoever refuses vectors of another encoder than the index has."""
    told = encoder_differences(built, now)
    if only_task(built, now):
        return f"{place} was built with another encoder: {told}. {_task_advice(built, now)}"
    return (
        f"{place} was built with another encoder: {told}. Vectors of "
        "the two cannot be compared. Load the encoder that the index was built with, or build the "
        "index again with this one."
    )


def _task_advice(built: EncoderInfo, now: EncoderInfo) -> str:
    if built.task is None:
        return (
            f'The task "{now.task}" is symmetric: its passages are encoded as its queries are, '
            "but those of this index are not. Take an asymmetric task, or build the index again "
            f"with task={now.task}."
        )
    wanted = "an asymmetric one" if now.task is None else f'"{now.task}"'
    return (
        f'The task "{built.task}" is symmetric: only its queries can be compared with the passages '
        f"of this index. Take that task, or build the index again with {wanted}."
    )


def settings_differences(before: EncodingSettings, now: EncodingSettings) -> str:
    """In what the settings of two folders of shards differ; nothing where they fit each other."""
    encoders = encoder_differences(before.encoder, now.encoder)
    others = _told(
        [
            ("stored as", before.dtype, now.dtype),
            ("dimensions kept", f"{before.dimension}", f"{now.dimension}"),
            ("passages a shard", f"{before.shard_size:,}", f"{now.shard_size:,}"),
        ]
    )
    return "; ".join(part for part in (encoders, others) if part)


def _told(facts: list[tuple[str, str, str]]) -> str:
    return "; ".join(f"{name} {old}, now {new}" for name, old, new in facts if old != new)
