"""What prompts cost models that nobody has to run: work and memory counted from configurations.

Counted are the multiplications of linear layers and of attention, two operations each, as is usual.
Norms, token embeddings and whatever a kernel wastes are not. Times follow where a machine is busy
computing; with few tokens it is busy reading weights, and then all ways cost more alike.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from epic_retrieval.tasks.files import parse_document


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder's configuration that decide its costs.

    Attributes:
        matrices: of an MLP: three where it is gated, as in most families, two in OPT.
    """

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    key_value_heads: int
    head: int
    positions: int = 0
    matrices: int = 3

    def bytes_per_position(self, width: int = 2) -> int:
        """Bytes of keys and values that a position takes, in numbers of `width` bytes."""
        return 2 * self.layers * self.key_value_heads * self.head * width

    def operations(self, new: int, before: int = 0) -> int:
        """Operations of running `new` tokens behind `before` positions whose keys are kept."""
        attended = new * before + new * (new + 1) // 2
        width = self.heads * self.head
        projections = self.hidden * (2 * width + 2 * self.key_value_heads * self.head)
        linear = self.layers * (projections + self.matrices * self.hidden * self.inner)
        return 2 * new * linear + 4 * self.layers * width * attended


@dataclass(frozen=True)
class Assumed:
    """Texts for which costs are counted, in tokens.

    Attributes:
        query: its own text, end token included.
        instruction: with the words around it.
        demonstration: query and passage of one, without its instruction.
        demonstrations: how many.
        bytes: of a number.
    """

    query: int = 20
    instruction: int = 20
    demonstration: int = 150
    demonstrations: int = 5
    bytes: int = 2

    @property
    def positions(self) -> dict[str, int]:
        """Positions before a query: its instruction, and every demonstration behind its own."""
        shown = self.demonstrations
        return {
            "none": self.instruction,
            "epic": self.instruction + shown * (self.instruction + 2),
            "text": self.instruction + shown * (self.instruction + self.demonstration),
        }


def shape_of(config: Any, name: str) -> Shape:  # noqa: ANN401 (a transformers configuration)
    """The shape of a model that is here."""
    heads = int(config.num_attention_heads)
    ungated = getattr(config, "ffn_dim", None)
    return Shape(
        name,
        layers=int(config.num_hidden_layers),
        hidden=int(config.hidden_size),
        inner=int(ungated or config.intermediate_size),
        heads=heads,
        key_value_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        positions=int(config.max_position_embeddings),
        matrices=2 if ungated else 3,
    )


def known_shapes() -> tuple[list[Shape], Assumed]:
    """Models of 7 and 8 billion parameters, and the texts that are assumed for them."""
    home = files("epic_retrieval") / "data" / "benchmarks" / "shapes.yaml"
    found: Any = parse_document(home.read_bytes(), ".yaml")
    return [Shape(**one) for one in found["shapes"]], Assumed(**found["assumed"])


def counted_costs(shape: Shape, assumed: Assumed) -> list[dict[str, Any]]:
    """For each way to show demonstrations: tokens run a query, operations, keys and values.

    Operations are given in 10^9, and over those of EPIC behind a shared prompt; keys and values of
    a task's prompt in MiB.
    """
    kept, own = assumed.positions, assumed.query
    base = shape.operations(own, kept["epic"])
    rows = []
    for label, mode, shared in (
        ("instruction, shared", "none", True),
        ("EPIC, shared", "epic", True),
        ("demonstrations as text, shared", "text", True),
        ("EPIC, prompt run again", "epic", False),
        ("demonstrations as text, prompt run again", "text", False),
    ):
        run = own if shared else own + kept[mode]
        operations = shape.operations(run, kept[mode] if shared else 0)
        rows.append(
            {
                "way": label,
                "tokens_run": run,
                "giga_operations": operations / 1e9,
                "over_epic": operations / base,
                "keys_values_mib": kept[mode] * shape.bytes_per_position(assumed.bytes) / 2**20,
                "once_giga_operations": shape.operations(kept[mode]) / 1e9 if shared else 0.0,
            }
        )
    return rows
