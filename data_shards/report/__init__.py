"""Report text: its sections, its anatomical parts and its sentences."""

from .anatomy import ANATOMY, anatomical_sections
from .names import SECTIONS
from .sections import split_sections
from .sentences import sentences

__all__ = ["ANATOMY", "SECTIONS", "anatomical_sections", "sentences", "split_sections"]
