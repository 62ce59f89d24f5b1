"""Colours of figures and pages, on light and on dark ground.

A figure inside a page is drawn in placeholder colours that become CSS variables, so that it follows
the reader's theme; a figure in a file is drawn in the light ones.
"""

from dataclasses import dataclass
from types import MappingProxyType

# By role: on light ground, on dark ground. Distinct for the colour-blind too (after Okabe and Ito).
_ROLES = {
    "ground": ("#ffffff", "#15181c"),
    "ink": ("#1c1f23", "#e6e8eb"),
    "faint": ("#6b7280", "#9aa3ad"),
    "line": ("#d9dde2", "#343a42"),
    "panel": ("#f5f6f8", "#1d2127"),
    "blue": ("#0067a5", "#5cb3ea"),
    "orange": ("#c25e00", "#f0994a"),
    "green": ("#00795a", "#3fc79e"),
    "purple": ("#8a3f8f", "#d18fd6"),
    "yellow": ("#8a6d00", "#e3c446"),
    "grey": ("#60666e", "#a5adb6"),
}


@dataclass(frozen=True)
class Palette:
    """Colours by role, as matplotlib takes them."""

    colours: MappingProxyType[str, str]

    def __getitem__(self, role: str) -> str:
        return self.colours[role]


LIGHT = Palette(MappingProxyType({role: pair[0] for role, pair in _ROLES.items()}))
# Colours that nothing else has, to be found again in the drawing.
PLACEHOLDERS = Palette(
    MappingProxyType({role: f"#0a0b{place:02x}" for place, role in enumerate(_ROLES)})
)


def with_variables(drawing: str) -> str:
    """An SVG drawn in placeholders, with a CSS variable for each."""
    for role, colour in PLACEHOLDERS.colours.items():
        drawing = drawing.replace(colour, f"var(--{role})")
    return drawing


def variables(*, dark: bool) -> str:
    """CSS declarations of all roles."""
    return "".join(f"--{role}:{pair[dark]};" for role, pair in _ROLES.items())
