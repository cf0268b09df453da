"""A way to a database server that loses what is said about COMMIT."""

from __future__ import annotations

import re
import select
import socket
import threading
from contextlib import suppress
from enum import Enum

from sqlalchemy.engine import make_url

#: Not MySQL's AUTOCOMMIT and READ COMMITTED, which begin each connection.
COMMIT = re.compile(rb"(?<!AUTO)COMMIT(?!TED)")


class Loss(Enum):
    """What gets lost, once."""

    #: The server commits, and its answer does not come through.
    ANSWER = "the answer"
    #: The server does not hear of COMMIT.
    COMMIT = "the command"


class Proxy:
    """Passes on what client and server say to each other, on loopback."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self._server = (str(parsed.host), int(parsed.port or 0))
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        #: The way by this proxy.
        self.url = parsed.set(port=port).render_as_string(hide_password=False)
        #: What is to get lost at the next COMMIT.
        self.loss: Loss | None = None
        #: Where COMMIT is looked for; a write of one statement has none.
        self.pattern = COMMIT
        #: How many connections are to be refused after that, or after a cut.
        self.refusals = 0
        self.lost = 0
        self._clients: list[socket.socket] = []
        self._refuse = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def cut(self) -> None:
        """End all connections."""
        self._refuse = self.refusals
        for client in self._clients:
            with suppress(OSError):  # it has ended already
                client.shutdown(socket.SHUT_RDWR)

    def allow(self) -> None:
        """Refuse no more connections."""
        self.refusals = self._refuse = 0

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuse:
                self._refuse -= 1
                client.close()
                continue
            self._clients.append(client)
            server = socket.create_connection(self._server)
            threading.Thread(
                target=self._pass_on, args=(client, server), daemon=True
            ).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, suppress(OSError):
            while True:
                ready, _, _ = select.select([client, server], [], [])
                for source in ready:
                    said = source.recv(65536)
                    if not said:
                        return
                    if source is server:
                        client.sendall(said)
                    elif self.loss is not None and self.pattern.search(said):
                        self._lose(said, server)
                        return
                    else:
                        server.sendall(said)

    def _lose(self, said: bytes, server: socket.socket) -> None:
        loss, self.loss = self.loss, None
        self._refuse = self.refusals
        if loss is Loss.ANSWER:
            server.sendall(said)
            server.recv(65536)
        self.lost += 1
