"""Which part of a prompt each of its positions belongs to. Knows no model.

In the order of a sequence:

    first           its first token: the beginning token where the tokenizer has one
    wording         what surrounds demonstrations: the repeated instruction, the template's words
    demonstrations  their queries and passages, as text or as vectors; or vectors learned instead
    instruction     that of the query itself, with the template's words around the query
    query           the query's own text
    end             the end token, whose state is the embedding
"""

from itertools import takewhile
from typing import TYPE_CHECKING, Literal, get_args

from epic_retrieval.prompt import Piece, Prompt, Template, Text, Vectors, build_prompt

if TYPE_CHECKING:
    from torch import Tensor

    from epic_retrieval.tokenization import TextTokenizer

Segment = Literal["first", "wording", "demonstrations", "instruction", "query", "end"]
SEGMENTS: tuple[Segment, ...] = get_args(Segment)


def prompt_segments(
    tokenizer: "TextTokenizer", template: Template, instruction: str, prompt: Prompt
) -> list[Segment]:
    """(P,) the segment of each position of a prompt, in the order in which a model reads them.

    A token that reaches over the border of two pieces belongs to the second one.

    Args:
        tokenizer: of the model.
        template: that the prompt was made with.
        instruction: of the task.
        prompt: of the task's queries.
    """
    last = len(prompt.prefix) - len(build_prompt(template, instruction).prefix)
    positions = _positions(tokenizer, prompt.prefix)
    segments: list[Segment] = []
    for number, piece in enumerate(prompt.prefix):
        before = positions
        if number + 1 < len(prompt.prefix):
            # An empty piece of vectors: white space at the end stays, as it does in the middle.
            empty = Vectors(_no_vectors())
            before = _positions(tokenizer, (*prompt.prefix[: number + 1], empty))
        pairs = zip(before, positions, strict=False)
        end = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        kind: Segment = "instruction" if number >= last else _kind(piece, instruction)
        segments += [kind] * (end - len(segments))
    return ["first", *segments[1:]]


def _kind(piece: Piece, instruction: str) -> Segment:
    """Of a piece of a demonstration."""
    if isinstance(piece, Vectors):
        return "demonstrations"
    return "wording" if piece.markup or piece == Text(instruction) else "demonstrations"


def _positions(tokenizer: "TextTokenizer", pieces: tuple[Piece, ...]) -> list[object]:
    """What stands at each position: a token id, or which vector."""
    found: list[object] = []
    for ids in tokenizer.prompt_ids(Prompt(pieces)):
        if isinstance(ids, Vectors):
            found += [(id(ids.values), row) for row in range(len(ids.values))]
        else:
            found += ids
    return found


def _no_vectors() -> "Tensor":
    import torch

    return torch.empty(0, 0)
