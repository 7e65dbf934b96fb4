"""Which streams of an engine have their cells at hand: places are few, streams may be many."""

from __future__ import annotations

import time

from streamsink.engine.context import Host, Hosts
from streamsink.engine.member import Member
from streamsink.engine.neighbours import Neighbours
from streamsink.errors import CacheError

TURN = 1.0
"""Seconds for which a stream keeps its place while others wait for one."""
WORTH_A_MOVE = 32
"""Tokens still to be fed for which a stream moves to where lanes work."""


class Seating:
    """Gives out the places of an engine's contexts.

    A stream keeps its place until another one needs it: then that goes that was idle for longest,
    or else, after a while, the one that has had its place for longest.

    Parameters
    ----------
    hosts : Hosts
        The contexts.
    """

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._free = [(host, place) for host in hosts.hosts for place in range(host.n_places)]
        self._free.reverse()
        self._homes: dict[Member, tuple[Host, int]] = {}
        """Who has a place, the one that was given out first first."""
        self._used: dict[Member, float] = {}
        self._neighbours = {
            host: Neighbours(host.n_places) for host in hosts.hosts if host.joins_neighbours
        }
        self._waiting: dict[Member, float] = {}
        self._turned = 0.0
        self._aside: Member | None = None
        self._is_stuck = False
        self.has_decoded = True
        """Whether anything was decoded in the last step."""

    def begin_step(self) -> None:
        """See to what is to be done before streams are asked for their works."""
        # Keys may wait to be rotated though nobody decodes, and might for ever.
        waits = any(host.shift_waits for host in self._hosts.hosts)
        self._is_stuck = waits and not self.has_decoded
        for host, neighbours in self._neighbours.items():
            self._bring_together(host, neighbours)
        since, now = next(iter(self._waiting.values()), None), time.monotonic()
        if since is not None and not self._free and now - max(since, self._turned) > TURN:
            longest = next(filter(self.may_give_out, self._homes), None)
            if longest is not None:
                self._park(longest)
                self._turned = now

    def seats(self, member: Member) -> bool:
        """Whether a stream has a place, or gets one now."""
        now = time.monotonic()
        if member in self._homes:
            self._used[member] = now
            return True
        self._waiting.setdefault(member, now)
        if not self._free:
            self._make_room()
        if not self._free or next(iter(self._waiting)) is not member:
            return False
        del self._waiting[member]
        self._homes[member] = home = self._free.pop()
        self._used[member] = now
        self._enter(member, *home)
        return True

    def _make_room(self) -> None:
        """Put the cells of the stream into memory that was idle for longest, if one is."""
        idle = [one for one in self._homes if not one.is_busy and self.may_give_out(one)]
        if idle:
            self._park(min(idle, key=lambda member: self._used[member]))

    def stops_waiting(self, member: Member) -> None:
        """Let others have the place that a stream waited for."""
        self._waiting.pop(member, None)

    def may_give_out(self, member: Member) -> bool:
        """Whether a stream's cells can be given out now, or are not to be waited for."""
        host = member.slot.host
        return host is None or not host.shift_waits or self._is_stuck

    def _park(self, member: Member) -> None:
        self._leave(member)
        self._free.append(self._homes.pop(member))
        del self._used[member]

    def _bring_together(self, host: Host, neighbours: Neighbours) -> None:
        """Let streams that generate have places side by side, where that is worth while."""
        if self._aside is not None or host.shift_waits:
            return
        there = {place: one for one, (where, place) in self._homes.items() if where is host}
        at_work = [place for place, member in there.items() if member.is_generating]
        for source, target in neighbours.moves(at_work):
            pair = [(there[source], target)]
            if target in there:
                pair.append((there[target], source))
            else:
                self._free.remove((host, target))
                self._free.append((host, source))
            for member, _ in pair:
                self._leave(member)
            for member, place in pair:
                self._homes[member] = (host, place)
                self._enter(member, host, place)

    # -- aside ----------------------------------------------------------------------------------

    def lanes_for(self, member: Member) -> int:
        """How many lanes a stream has that is fed; it may move for them until its task has ended.

        In a context that streams share there are none. One of them at a time has that for itself in
        which there are; to its neighbours it is a stream that decodes elsewhere.
        """
        slot = member.slot
        is_there = slot.host is not None and slot.host.n_places == 1
        if is_there or (member.driver.n_pending >= WORTH_A_MOVE and self._goes_aside(member)):
            return slot.n_lanes
        return 1

    def scratch_for(self, member: Member) -> bool | None:
        """Whether a stream has a `SCRATCH` now; None where it is to wait for one."""
        host = member.slot.host
        if host is not None and host.has_scratch:
            return True
        if self._hosts.lanes_host() is None:
            return False
        return True if self._goes_aside(member) else None

    def _goes_aside(self, member: Member) -> bool:
        host = self._hosts.lanes_host()
        if self._aside is not None or host is None or not self.may_give_out(member):
            return False
        self._leave(member)
        self._aside = member
        self._enter(member, host, 0)
        return True

    def comes_home(self, member: Member) -> None:
        """Bring a stream back from where it was by itself."""
        if self._aside is member:
            self._leave(member)
            self._enter(member, *self._homes[member])

    # -- how ------------------------------------------------------------------------------------

    def _enter(self, member: Member, host: Host, place: int) -> None:
        try:
            member.slot.enter(host, place)
        except CacheError:
            member.loses_cells()

    def _leave(self, member: Member) -> None:
        if self._aside is member:
            self._aside = None
        member.loses_place()
        try:
            member.slot.leave()
        except CacheError:
            member.loses_cells()

    def lose_cells(self, host: Host | None) -> None:
        """Note that the cells of all streams in a context are gone."""
        for member in self._homes:
            if member.slot.host is host:
                member.loses_cells()

    def forget(self, member: Member) -> None:
        """Let go of a stream that is closed."""
        self._waiting.pop(member, None)
        self._used.pop(member, None)
        if self._aside is member:
            self._aside = None
        if member in self._homes:
            self._free.append(self._homes.pop(member))
