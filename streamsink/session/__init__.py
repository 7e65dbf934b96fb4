"""Session files: a stream, and the conversation on it, for another day.

``read`` and ``write`` know the file, ``shelf`` the folder in which sessions have names, ``export``
turns one into text. `streamsink.Model.restore` makes a stream of one again.
"""

from __future__ import annotations

from streamsink.session.file import Session, read, read_cells, read_logits, write

__all__ = ["Session", "read", "read_cells", "read_logits", "write"]
