"""`python -m epic_retrieval.cli`, for launchers that start modules (torchrun, accelerate)."""

from epic_retrieval.cli import main

main()
