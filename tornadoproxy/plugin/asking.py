"""How the plugins are asked: one after the other, failing closed."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from tornadoproxy.errors import ClientError, PluginFailed
from tornadoproxy.plugin.decisions import WHO, Asking, Question, invalid_result
from tornadoproxy.plugin.failures import Deadline, discard, held_the_loop, log_now_and_then

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy.errors import ProxyError
    from tornadoproxy.plugin.loading.implementations import PluginCall


class Asker:
    """Asks the plugins of one proxy.

    :ivar deadline: ``PLUGIN_TIMEOUT``.
    :ivar refusals: failures by plugin that refused a request.
    """

    def __init__(self, timeout: float) -> None:
        self.deadline = Deadline(timeout)
        self.refusals: Counter[str] = Counter()

    def ask(
        self,
        question: Question,
        calls: list[PluginCall],
        asked: tuple[Any, ...],  # Any: the arguments of any hook, the request first
        take: Callable[[str, object], bool],
    ) -> Asking:
        """Ask each plugin; yield each awaitable result, and be sent its outcome.

        :param take: returns whether a result is valid, and keeps a permit.
        :return: the first result, if that decides; the last one, if results are passed on.
        :raises AuthenticationFailed: no plugin knows whose request it is.
        :raises ClientError: a plugin's own refusal.
        :raises PluginFailed: a plugin failed.
        """
        timeout = self.deadline.seconds
        for plugin, ask in calls:
            result: object = None
            failed: BaseException | None = None
            began = monotonic()
            try:
                result = ask(*asked)
            except BaseException as error:
                failed = error
            if (took := monotonic() - began) > timeout:
                take(plugin, result)  # a permit must be settled
                discard(result)
                failed = held_the_loop(took, timeout)
            elif result is None or take(plugin, result):
                pass
            elif isinstance(result, asyncio.Future) or inspect.isawaitable(result):
                # a late result does not count, but a permit must be settled
                result, failed = yield self.deadline.watch(result, partial(take, plugin))
                if result is not None and not take(plugin, result):
                    discard(result)
                    failed = invalid_result(question, result)
            else:
                failed = invalid_result(question, result)
            if failed is not None:
                # outside the except block: the plugin's exception must not become the context
                raise self.refusal(question, plugin, failed)
            if result is not None:
                if question.first_counts:
                    return result
                if question.passes_on:
                    asked = (*asked[:-1], result)
        if question.passes_on:
            return asked[-1]
        if question is WHO:
            raise asked[0].authentication_failed()
        return None

    def refusal(self, question: Question, plugin: str, error: BaseException) -> ProxyError:
        """Return `error` if it is a plugin's refusal, else count a failure of `plugin`."""
        if isinstance(error, ClientError) and 400 <= error.status <= 599:
            return error
        self.refusals[plugin] += 1
        message = f"plugin %r failed in {question.hook}, request refused"
        log_now_and_then(message, self.refusals[plugin], plugin, error)
        return PluginFailed(question.unavailable, retry_after=1)
