"""A steady load from inside a VM: load.py URL. It runs until its standard input ends, and then prints what it saw as JSON.

Two kinds of callers ask all the time, at a steady pace that does not wait for answers: `new` looks up the name and opens a
connection for each request, as short-lived programs do; `kept` asks again and again over connections that it holds.
"""

import asyncio
import concurrent.futures
import json
import sys
import time
import urllib.parse

#: Requests of each kind in a second, and connections that are kept.
PACE, KEPT = 20, 4
#: Seconds after which a caller gives up, and from which an answer counts as slow.
LIMIT, SLOW = 15.0, 1.0
TARGET = urllib.parse.urlsplit(sys.argv[1])


class Tally:
    def __init__(self):
        self.sent, self.slow, self.slowest, self.lost = 0, 0, 0.0, []

    async def count(self, request):
        began, self.sent = time.monotonic(), self.sent + 1
        try:
            await asyncio.wait_for(request, LIMIT)
            took = time.monotonic() - began
            self.slow += took > SLOW
            self.slowest = max(self.slowest, took)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            self.lost.append([round(began - STARTED, 2), str(error) or type(error).__name__])


async def ask(reader, writer):
    writer.write(f"GET {TARGET.path} HTTP/1.1\r\nHost: {TARGET.hostname}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    length = next(int(value) for name, _, value in (field.partition(":") for field in fields) if name.lower() == "content-length")
    await reader.readexactly(length)
    if status.split()[1] != "200":
        raise ValueError(status)


async def over_new_connection():
    reader, writer = await asyncio.open_connection(TARGET.hostname, TARGET.port or 80)
    try:
        await ask(reader, writer)
    finally:
        writer.close()


class Kept:
    """A connection that is held; after a failure the next request opens another."""

    def __init__(self):
        self.connection, self.turn = None, asyncio.Lock()

    async def request(self):
        async with self.turn:
            try:
                self.connection = self.connection or await asyncio.open_connection(TARGET.hostname, TARGET.port or 80)
                await ask(*self.connection)
            except BaseException:
                if self.connection:
                    self.connection[1].close()
                self.connection = None
                raise


async def main():
    tallies, kept = {"new": Tally(), "kept": Tally()}, [Kept() for _ in range(KEPT)]
    running, number = set(), 0
    loop = asyncio.get_running_loop()
    # Names are looked up in threads: one that waits must not hold up others.
    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(2 * PACE * int(LIMIT)))
    ended = loop.run_in_executor(None, sys.stdin.read)
    while not ended.done():
        requests = {"new": over_new_connection(), "kept": kept[number % KEPT].request()}
        for kind, request in requests.items():
            task = asyncio.ensure_future(tallies[kind].count(request))
            running.add(task)
            task.add_done_callback(running.discard)
        number += 1
        if number == PACE:
            print("under way", flush=True)
        await asyncio.sleep(max(0.0, STARTED + number / PACE - time.monotonic()))
    await asyncio.gather(*running)
    print(json.dumps({kind: vars(tally) for kind, tally in tallies.items()}), flush=True)


STARTED = time.monotonic()
asyncio.run(main())
