"""The former place of `aloe.generate.embed`, which rooms below prompting use too. Kept for importers of this name."""

from aloe.generate.embed import Embedder, Encoder, packaged_folder, unit_rows

__all__ = ["Embedder", "Encoder", "packaged_folder", "unit_rows"]
