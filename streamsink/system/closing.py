"""What holds something until it is closed, at the latest by the end of a ``with`` statement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

Self = TypeVar("Self", bound="Closing")


class Closing(ABC):
    """A base whose `close` is called at the end of a ``with`` statement."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds. Twice is fine."""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
