"""params.yaml, `report:`: what the report shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """params.yaml, `report:` — what is shown."""

    pictures: int
    """Tested pictures shown with their five guesses and a saliency map of the first. Figure 4: 8."""
    queries: int
    """Queries (of `results.queries`) shown with their nearest training pictures. Figure 4: 5."""
    seed: int
    """Seed of the choice of the pictures and the queries."""

    def __post_init__(self) -> None:
        for name in ("pictures", "queries", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} has to be 0 or more, is {getattr(self, name)}")
