"""Rewards that judge one completion at a time and take long, such as calls of another server: many at once, with a limit and retries."""

import asyncio
import inspect
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Any

from ollm_rl.common.locate import locate
from ollm_rl.errors import ConfigurationError
from ollm_rl.reward.config import PerCompletionConfig


class PerCompletion:
    """A reward made from `f(prompt, completion, **columns) -> float | None`, which may be asynchronous.

    >>> async def asked(completion, answer, **columns):
    ...     reply = await client.post(url, json={"text": completion, "gold": answer})
    ...     return reply.json()["score"]
    >>> ol.Session(backbone, plugin, task, reward=ol.PerCompletion(asked, concurrency=32, timeout_s=20, retries=3))

    A completion whose every try raises or takes too long gets None and the verdict `failed`: its episode is left out. If all of a call's
    completions fail, the last error is raised.

    Args:
        function: or `<module>.<name>` of it. It gets those of prompt, completion and columns that it takes. One that is not asynchronous runs
            in a thread, which goes on after its limit.
        settings: those of `PerCompletionConfig`.
    """

    config_class = PerCompletionConfig
    __name__ = "per_completion"

    def __init__(self, function: Callable[..., Any] | str | None, **settings: Any):
        self.config = PerCompletionConfig.of(settings, "reward per_completion")
        found: Any = locate(function, "reward.function") if isinstance(function, str) else function
        if not callable(found):
            raise ConfigurationError(
                f"reward.function={function!r:.80}; expected a function f(prompt, completion, **columns)"
            )
        self.function = found
        parameters = inspect.signature(self.function).parameters
        self._takes = None if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else set(parameters)

    async def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_extra: Callable[..., Any] | None = None,
        **columns: Sequence[Any],
    ) -> list[float | None]:
        rows = [
            {
                "prompt": prompt,
                "completion": completion,
                **{name: column[i] for name, column in columns.items() if _is_column(column, len(completions))},
            }
            for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        free, errors = asyncio.Semaphore(self.config.concurrency), list[BaseException]()
        found = await asyncio.gather(*(self._judged(row, free, errors) for row in rows))
        if errors and all(verdict == "failed" for _, verdict in found):
            raise errors[-1]
        if log_extra is not None:
            log_extra("verdict", [verdict for _, verdict in found])
        return [reward for reward, _ in found]

    async def _judged(
        self, row: dict[str, Any], free: asyncio.Semaphore, errors: list[BaseException]
    ) -> tuple[float | None, str]:
        given = row if self._takes is None else {k: v for k, v in row.items() if k in self._takes}
        for attempt in range(self.config.retries + 1):
            if attempt:
                await asyncio.sleep(self.config.wait_s * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
            async with free:
                try:
                    return await asyncio.wait_for(self._called(given), self.config.timeout_s), ""
                except Exception as error:
                    errors.append(error)
        return None, "failed"

    async def _called(self, given: dict[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return await self.function(**given)
        returned = await _in_thread(partial(self.function, **given))
        return await returned if inspect.isawaitable(returned) else returned


async def _in_thread(function: Callable[[], Any]) -> Any:
    """What a function gives, from a thread that nobody waits for: those of `asyncio.to_thread` keep the loop from ending."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Any] = loop.create_future()

    def settle(returned: Any, error: Exception | None) -> None:
        if not found.done():
            found.set_result(returned) if error is None else found.set_exception(error)

    def work() -> None:
        returned: Any = None
        failed: Exception | None = None
        try:
            returned = function()
        except StopIteration as error:  # no future takes it
            failed = RuntimeError(f"{type(error).__name__}: {error}")
        except Exception as error:
            failed = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, returned, failed)

    Thread(target=copy_context().run, args=(work,), daemon=True).start()
    return await found


def _is_column(value: Any, n: int) -> bool:
    return isinstance(value, list) and len(value) == n
