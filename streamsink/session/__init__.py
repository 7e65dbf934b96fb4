"""Session files: a stream, and the conversation on it, for another day.

``file`` knows the file, ``shelf`` the folder in which sessions have names, ``export`` turns one
into text. `streamsink.Model.restore` makes a stream of one again.
"""

from __future__ import annotations

from streamsink.session.file import Session, SessionFile, is_archive, read, read_cells, write

__all__ = ["Session", "SessionFile", "is_archive", "read", "read_cells", "write"]
