"""From one network namespace into another, over a Unix socket that both sides see as a file.

As a program, `relay.py SOCKET HOST PORT` stands inside: it takes connections on the socket and carries them to the address.
`Doors` stands outside: for each socket `NAME.sock` in a directory it listens on a loopback port, which `NAME.port` tells.
"""

import asyncio
import pathlib
import sys
import threading

#: Asked for first, so that the page stands where people look for one.
USUAL = {"page": 8080, "kubernetes": 6443}


async def carry(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        pass


async def join(one, other):
    """Carries both ways, until both have ended."""
    try:
        await asyncio.gather(carry(one[0], other[1]), carry(other[0], one[1]))
    finally:
        for _, writer in (one, other):
            writer.close()


def to(connect):
    """What a server does with each connection."""
    async def serve(reader, writer):
        try:
            there = await connect()
        except OSError:
            writer.close()
            return
        await join((reader, writer), there)
    return serve


class Doors(threading.Thread):
    """Opens a loopback port for each socket that appears in the directory."""

    def __init__(self, directory):
        super().__init__(daemon=True)
        self.directory = pathlib.Path(directory)

    def run(self):
        asyncio.run(self.watch())

    async def watch(self):
        open_doors = {}
        while True:
            for path in self.directory.glob("*.sock"):
                if path.stem not in open_doors:
                    open_doors[path.stem] = await self.listen(path)
            await asyncio.sleep(0.05)

    async def listen(self, path):
        serve = to(lambda: asyncio.open_unix_connection(path))
        try:
            server = await asyncio.start_server(serve, "127.0.0.1", USUAL.get(path.stem, 0))
        except OSError:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
        told = path.with_suffix(".new")
        told.write_text(str(server.sockets[0].getsockname()[1]))
        told.rename(path.with_suffix(".port"))
        return server


async def main(path, host, port):
    server = await asyncio.start_unix_server(to(lambda: asyncio.open_connection(host, int(port))), path)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
