"""Builds of llama.cpp whose AMX code would crash."""

import pytest

from streamsink.llama.amx import MENDED, misreads

DEBIAN_12 = b"\0GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\0"


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        (DEBIAN_12, True),
        (b"\0GCC: (GNU) 11.2.1 20210728\0", True),
        (DEBIAN_12 + MENDED, False),
        (b"\0GCC: (GNU) 15.1.0\0", False),
        (b"\0clang version 18.1.3\0", False),
        # The C++ library that was linked in may come from another compiler than the code.
        (b"\0GCC: (GNU) 15.1.0\0" + DEBIAN_12, True),
    ],
)
def test_which_builds_are_trusted(library: bytes, expected: bool) -> None:
    assert misreads(library) is expected
