"""A TCP proxy in front of redis which can swallow what passes, as a dead network does."""

import socket
import threading
import time

BUFFER = 65536  # bytes read at once


class Link:
    """One connection that passes through; two threads carry it.

    Attributes:
        swallows: Whether nothing passes, not even the end.
        mute: Whether what the server says is lost, and what it is told is not.
        delay: Seconds that everything takes on its way.
    """

    def __init__(self, inner, outer, delay=0.0):
        self.ends = (inner, outer)
        self.swallows = self.mute = False
        self.delay = delay
        self.threads = [
            threading.Thread(target=self._carry, args=pair, daemon=True)
            for pair in (self.ends, self.ends[::-1])
        ]
        for thread in self.threads:
            thread.start()

    def _carry(self, source, target):
        try:
            while data := source.recv(BUFFER):
                if self.delay:
                    time.sleep(self.delay)
                if not self.swallows and not (self.mute and source is self.ends[1]):
                    target.sendall(data)
        except OSError:
            pass
        # A black hole does not pass on the end of a connection either.
        if not self.swallows:
            self._hang_up()

    def _hang_up(self):
        for end in self.ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self._hang_up()
        for thread in self.threads:
            thread.join(5)
        for end in self.ends:
            end.close()


class Proxy:
    """Passes connections on to 127.0.0.1:*target*.

    Args:
        target: The port of the real server.

    Attributes:
        port: Where to connect instead.
        accepted: How many connections there have been.
        delay: Seconds that everything takes on new connections.
    """

    def __init__(self, target):
        self.target = target
        self.port = 0
        self.accepted = 0
        self.delay = 0.0
        self.links = []
        self.door = None
        self.open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shut()

    def open(self):
        """Take connections, on the same port as before."""
        self.door = socket.create_server(("127.0.0.1", self.port))
        self.port = self.door.getsockname()[1]
        self.thread = threading.Thread(target=self._welcome, args=(self.door,), daemon=True)
        self.thread.start()

    def _welcome(self, door):
        while True:
            try:
                inner, _ = door.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                outer = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                inner.close()
                continue
            outer.settimeout(None)
            self.links.append(Link(inner, outer, self.delay))

    def swallow(self):
        """From now on nothing passes through the present connections; they stay open."""
        for link in self.links:
            link.swallows = True

    def slow(self, seconds):
        """From now on everything takes *seconds* on its way, in each direction."""
        self.delay = seconds
        for link in self.links:
            link.delay = seconds

    def mute(self):
        """From now on the server hears what is said on present connections, and is not heard."""
        for link in self.links:
            link.mute = True

    def half_close(self):
        """The server seems to say no more on the present connections, but it listens."""
        for link in self.links:
            try:
                link.ends[0].shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def cut(self):
        """End the present connections, and take new ones."""
        for link in self.links[:]:
            link.close()
            self.links.remove(link)

    def shut(self):
        """Refuse connections and end all there are."""
        # Closing alone does not wake the thread that waits in accept().
        self.door.shutdown(socket.SHUT_RDWR)
        self.door.close()
        self.thread.join(5)
        for link in self.links:
            link.close()
        self.links.clear()
