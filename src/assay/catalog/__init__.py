"""What is known: papers with their techniques and claims, one TOML file per area.

``records`` reads the TOML files, ``techniques`` makes arms of what can be applied, ``daily_papers`` reads
saved Daily Papers pages, ``store`` keeps what they said, ``library`` joins it to the catalogue, and
``search`` ranks both by words.
"""

from assay.catalog.records import Claim, Paper, areas, paper, papers, symptoms

__all__ = ["Claim", "Paper", "areas", "paper", "papers", "symptoms"]
