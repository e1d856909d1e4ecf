"""Networks assembled from the building blocks of ``assay.nn`` by configuration."""

from assay.models.config import ModelConfig
from assay.models.decoder import Decoder

__all__ = ["Decoder", "ModelConfig"]
