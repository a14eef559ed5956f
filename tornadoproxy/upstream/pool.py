"""The upstreams of one proxy: which of them a request may go to, and in which order.

The order is that of the settings: the first one that is listed, or by weight. With weights, the
requests of one session prefer the same upstream, since its prompt cache is there: rendezvous
hashing, by which a session moves only when its upstream cannot be used (D. Thaler and
C. Ravishankar, https://doi.org/10.1109/90.663936; with weights: J. Resch, "New Hashing Algorithms
for Data Storage", SNIA 2015).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from tornadoproxy.config.core_settings import READY_NEEDS_UPSTREAM
from tornadoproxy.errors import NotFound, Overloaded
from tornadoproxy.protocol.wire import ANTHROPIC
from tornadoproxy.upstream.target import Target

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.config.upstreams import Upstream, UpstreamsOrder, UpstreamStatus
    from tornadoproxy.upstream.client import UpstreamClient

MAX_REMEMBERED = 100_000
"""How many ids of files and batches are remembered with their upstreams."""


class UpstreamPool:
    """The upstreams of one proxy.

    :ivar targets: all of them, in the order listed.
    :ivar sole: the only one, if it is the Anthropic API as it is, and nothing has to be known of
        its state: then nothing has to be chosen.
    :ivar has_clouds: whether some of them differ from the Anthropic API.
    """

    def __init__(
        self, settings: Settings, upstreams: Iterable[Upstream], order: UpstreamsOrder
    ) -> None:
        self.targets: tuple[Target, ...] = ()
        self._made_by: OrderedDict[str, str] = OrderedDict()
        self.load(settings, upstreams, order)

    def load(
        self, settings: Settings, upstreams: Iterable[Upstream], order: UpstreamsOrder
    ) -> None:
        """Use `upstreams` from now on; requests in flight keep theirs."""
        before = {target.name: target for target in self.targets}
        self.targets = tuple(
            self._continued(Target(upstream, settings), before.get(upstream.name))
            for upstream in upstreams
        )
        for target in before.values():
            if target not in self.targets:
                target.close()
        self._order = order
        only = self.targets[0]
        is_sole = len(self.targets) == 1 and only.upstream.is_plain
        self.sole = only if is_sole and not settings[READY_NEEDS_UPSTREAM] else None
        wires = [target.upstream.wire for target in self.targets]
        self.has_clouds = any(wire is not ANTHROPIC for wire in wires)
        self._need_body = [wire for wire in wires if wire.needs_body]

    @staticmethod
    def _continued(target: Target, before: Target | None) -> Target:
        if before is None:
            return target
        if before.upstream == target.upstream:
            before.key_is_refused = False
            return before
        target.continues(before)
        return target

    def needs_body(self, method: str, path: str) -> bool:
        """Whether an upstream that serves this has to be sent the whole body."""
        return any(wire.serves(method, path) for wire in self._need_body)

    def serving(self, method: str, path: str, model: str | None) -> list[Target]:
        """Return the upstreams that serve a path and a model.

        :param path: without its query.
        :raises NotFound: none does.
        """
        found = [each for each in self.targets if each.upstream.wire.serves(method, path)]
        if not found:
            raise NotFound(f"No upstream of this proxy serves {method} {path[:200]}.")
        if model is None:
            return found
        serving = [each for each in found if each.upstream.model(model) is not None]
        if not serving:
            raise NotFound(
                f"No upstream of this proxy serves the model '{model[:100]}'.",
                code="model_not_found",
                param="model",
            )
        return serving

    def in_order(self, targets: Sequence[Target], session: str) -> list[Target]:
        """Return `targets` in the order in which they are to be tried.

        :param session: what is common to the requests that should stay on one upstream.
        """
        if self._order.listed or len(targets) == 1:
            return list(targets)
        if not self._order.sticky:
            session = os.urandom(8).hex()
        return sorted(targets, key=lambda each: _score(each, session))

    def next(
        self, targets: Sequence[Target], tried: Collection[Target], model: str | None
    ) -> Target | None:
        """Return the one of `targets` to try next; ``None`` if there is no other.

        If all rest, the first to be tried is the one whose rest ends first, and the only one: a
        request must not ask every upstream that has no capacity left.

        :param tried: those that have failed for this request.
        :raises Overloaded: none has been tried, and all are full.
        """
        now = time.monotonic()
        free = [each for each in targets if each not in tried and not each.is_full]
        for target in free:
            if target.is_well(now) and not target.lacks(model, now):
                return target
        if tried:
            return None
        if not free:
            raise Overloaded(
                "Every upstream of this proxy has as many requests as it may. Try again.",
                retry_after=1,
            )
        return min(free, key=lambda each: (each.lacks(model, now), each.rests_until))

    def holder(self, ids: Iterable[str]) -> Target | None:
        """Return the pinned upstream, or the one that made one of `ids`, if that is known."""
        names = {target.name: target for target in self.targets}
        if self._order.pinned is not None:
            return names.get(self._order.pinned)
        known = (names.get(self._made_by.get(each, "")) for each in ids)
        return next((target for target in known if target is not None), None)

    def lister(self) -> Target | None:
        """Return the upstream to ask for its models; ``None`` if none of them lists any."""
        listing = [each for each in self.targets if each.upstream.wire.serves("GET", "/v1/models")]
        return self.next(listing, (), None) if listing else None

    def models_of_settings(self) -> bytes:
        """Return a list of the models that the settings name, as the API would list them."""
        names = dict.fromkeys(
            name for each in self.targets for name in each.upstream.models if "*" not in name
        )
        models = [{"type": "model", "id": name, "display_name": name} for name in names]
        return json.dumps({"data": models, "has_more": False}).encode()

    def made(self, id_: str, target: Target) -> None:
        """Remember that `target` made the file or batch `id_`."""
        self._made_by[id_] = target.name
        self._made_by.move_to_end(id_)
        if len(self._made_by) > MAX_REMEMBERED:
            self._made_by.popitem(last=False)

    @property
    def clients(self) -> list[UpstreamClient]:
        """The client of each."""
        return [target.client for target in self.targets]

    @property
    def usable(self) -> bool:
        """Whether one of them can be asked at present."""
        now = time.monotonic()
        return any(target.is_well(now) for target in self.targets)

    def status(self) -> tuple[UpstreamStatus, ...]:
        """Return the figures of each."""
        return tuple(target.status() for target in self.targets)

    def close(self) -> None:
        """Close idle connections, once no request is left."""
        for target in self.targets:
            target.close()


def _score(target: Target, session: str) -> float:
    drawn = hashlib.blake2b(f"{target.name}\0{session}".encode(errors="replace"), digest_size=8)
    uniform = (int.from_bytes(drawn.digest()) + 0.5) / 2**64
    return -math.log(uniform) / target.upstream.weight
