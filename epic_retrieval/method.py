"""What a model reads in place of a demonstration, and how its states become one vector.

The defaults are EPIC; everything else is an ablation of the paper. Stored in the checkpoint.
Knows no model.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from epic_retrieval.errors import InputError

Field = Literal["instruction", "query", "passage"]
Source = Literal["encoded", "learned", "soft-prompt"]
Attention = Literal["causal", "bidirectional"]
PoolingName = Literal["eos", "mean", "latent"]

FIELDS: tuple[Field, ...] = get_args(Field)


@dataclass(frozen=True)
class Method:
    """How demonstrations become vectors, and texts embeddings.

    Attributes:
        vectors: which parts of a demonstration are vectors, in this order; the others stay text
            (Table 4b). Which parts are shown at all, and how often the instruction, is a matter of
            the template (Table 4a).
        every: 0: one vector per text. n: the states of every n-th token, counted back from the end
            token, so ceil(length / n) vectors (Table 3).
        source: "encoded": from the demonstrations' own states. "learned": as many trained vectors
            instead, the same for all tasks. "soft-prompt": trained vectors before the instruction,
            and no demonstrations (Table 5).
        attention: "bidirectional" lets every token see the whole text; then no prompt can be shared
            between texts (Table 6).
        pooling: which states make the embedding: the end token's, the mean over the text and its
            end token (the prompt excluded), or the mean after NV-Embed's latent attention.

    Raises:
        InputError: for an unknown value or a combination without a meaning.
    """

    vectors: tuple[Field, ...] = ("query", "passage")
    every: int = 0
    source: Source = "encoded"
    attention: Attention = "causal"
    pooling: PoolingName = "eos"

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", tuple(self.vectors))
        if not self.vectors or list(self.vectors) != [f for f in FIELDS if f in self.vectors]:
            raise InputError(
                f"vectors is {list(self.vectors)}; expected some of {', '.join(FIELDS)}, in this"
                ' order, each once; for demonstrations that are all text use mode "text"'
            )
        for name, known in (
            ("source", get_args(Source)),
            ("attention", get_args(Attention)),
            ("pooling", get_args(PoolingName)),
        ):
            if getattr(self, name) not in known:
                given = getattr(self, name)
                raise InputError(f"{name} is {given!r}; expected one of {', '.join(known)}")
        if type(self.every) is not int or self.every < 0:  # a bool is an int too
            raise InputError(f"every is {self.every!r}; expected 0 or a number of tokens")
        if self.every and (self.pooling != "eos" or self.source != "encoded"):
            raise InputError(
                f"every is {self.every}, which samples the states of demonstrations; it goes with"
                f' pooling "eos" and source "encoded", not with {self.pooling!r}, {self.source!r}'
            )

    @property
    def needs_demonstrations(self) -> bool:
        """Whether mode "epic" shows a task's own demonstrations."""
        return self.source == "encoded"

    @property
    def causal(self) -> bool:
        """Whether a prompt's keys and values can be shared by all texts behind it."""
        return self.attention == "causal"
