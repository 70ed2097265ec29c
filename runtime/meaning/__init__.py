"""What the numbers of a cube mean: scale, gains, marks of missing values, bands that say nothing, wavelengths.

`meaning_of(cube, stated, asked, known)` puts together what somebody asked for, what the file states, what the bundle
knows and what is seen in the data, and refuses what has no single reading. What is doubtful is told in one list.
"""

from runtime.meaning.cube import Meaning, header_fields, look, meaning_of
from runtime.meaning.marks import Mark
from runtime.meaning.numbers import Asked, Known

__all__ = ["Asked", "Known", "Mark", "Meaning", "header_fields", "look", "meaning_of"]
