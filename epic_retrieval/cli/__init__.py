"""The `epic` command."""

from epic_retrieval.cli.app import main

__all__ = ["main"]
