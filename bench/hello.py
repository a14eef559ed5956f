"""The bare Tornado hello handler that the proxy's cost is compared with: ``hello.py PORT``."""

from __future__ import annotations

import asyncio
import sys

from tornado.web import Application, RequestHandler

RESPONSE = b"x" * 800


class Hello(RequestHandler):
    def post(self) -> None:
        self.write(RESPONSE)


class Health(RequestHandler):
    def get(self) -> None:
        self.write(b"ok")


async def main(port: int) -> None:
    application = Application(
        [("/health", Health), ("/v1/messages", Hello)], log_function=lambda handler: None
    )
    application.listen(port, "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
