"""The load of one machine, as an ordinary program there: client.py OUTPUT NAME HTTP-ADDRESS ECHO-ADDRESS DNS-NAME PACE

Three flows run until SIGTERM, each at a steady pace that does not wait for answers:
  http  a new connection for each request, to the service's virtual address: it needs no name to be looked up
  echo  one long-lived connection that sends sequence numbers and expects them back in order
  dns   UDP queries to the host's resolver for the service's name, asked twice as resolv.conf(5) says (5 s each)

It becomes an ordinary user, as redirect rules may leave some programs of the system alone.
OUTPUT gets one JSON object a line: for each second and flow what was answered and by whom, and each lost request. Times are
the system's monotonic clock, which all processes of the machine share.
"""

import asyncio
# Found now: later, as an ordinary user, Python's own files may be out of reach.
import encodings.idna
import json
import os
import signal
import struct
import sys
import time

OUTPUT, NAME, HTTP, ECHO, DNS_NAME, PACE = sys.argv[1:6] + [float(sys.argv[6])]
#: Seconds after which a caller gives up. Outcomes are judged, not speed: a busy machine may take long.
LIMIT = 20.0
#: resolv.conf(5): `timeout:5 attempts:2`, both for the one resolver that there is.
DNS_ATTEMPTS, DNS_TIMEOUT = 2, 5.0
RESOLVER = ("127.0.0.53", 53)
#: Per second; a program asks less often for names than it sends requests.
SLOW_FLOWS_PACE = 5.0
USER = 1000
#: No more requests wait at once: a caller that cannot be served does not pile up load for ever.
WAITING = 300


class Log:
    def __init__(self):
        self.file, self.seconds = open(OUTPUT, "a", buffering=1, encoding="utf-8"), {}

    def good(self, flow, began, by):
        second = self.seconds.setdefault((int(time.monotonic()), flow), {"ok": 0, "slowest": 0.0, "by": {}})
        second["ok"] += 1
        second["slowest"] = max(second["slowest"], round(time.monotonic() - began, 2))
        second["by"][by] = second["by"].get(by, 0) + 1

    def lost(self, flow, began, to, why, by=None):
        self.write({"lost": flow, "from": NAME, "begin": round(began, 3), "end": round(time.monotonic(), 3), "to": to, "by": by, "why": str(why)[:200]})

    def flush(self, all_of_it=False):
        now = int(time.monotonic())
        for second, flow in sorted(self.seconds):
            if all_of_it or second < now:
                self.write({"second": second, "flow": flow, "from": NAME, **self.seconds.pop((second, flow))})

    def write(self, record):
        self.file.write(json.dumps(record) + "\n")


LOG = Log()


def reason(error):
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def ask(state):
    """One request over a connection of its own. Returns which machine answered."""
    state[0] = "connect"
    reader, writer = await asyncio.open_connection(HTTP, 80)
    try:
        state[0] = "answer"
        writer.write(f"GET / HTTP/1.1\r\nHost: {DNS_NAME}\r\nConnection: close\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode(errors="replace")
        status = head.split("\r\n")[0]
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])}
        state[0] = f"body of {status}"
        body = await reader.readexactly(int(fields["content-length"])) if "content-length" in fields else await reader.read(4096)
        if status.split()[1:2] != ["200"]:
            raise ValueError(f"{status}; server {fields.get('server')}; {body[:120].decode(errors='replace')}")
        return json.loads(body)["name"]
    finally:
        writer.close()


async def http():
    began, state = time.monotonic(), [""]
    try:
        by = await asyncio.wait_for(ask(state), LIMIT)
        LOG.good("http", began, by)
    except (OSError, EOFError, ValueError, KeyError, asyncio.TimeoutError) as error:
        LOG.lost("http", began, f"{HTTP}:80 {DNS_NAME}", f"{state[0]}: {reason(error)}")


def query(number):
    name = b"".join(bytes([len(part)]) + part.encode() for part in DNS_NAME.split("."))
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + name + b"\0" + struct.pack(">HH", 1, 1)


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, number):
        self.number, self.answer = number, asyncio.get_running_loop().create_future()

    def datagram_received(self, data, _):
        if data[:2] == struct.pack(">H", self.number) and not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, error):
        if not self.answer.done():
            self.answer.set_exception(error)


async def look_up(number):
    failed = None
    for _ in range(DNS_ATTEMPTS):
        transport = None
        try:
            transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Datagrams(number), remote_addr=RESOLVER)
            transport.sendto(query(number))
            answer = await asyncio.wait_for(protocol.answer, DNS_TIMEOUT)
            code, answers = answer[3] & 15, struct.unpack(">H", answer[6:8])[0]
            if code == 0 and answers:
                return
            failed = ValueError(f"response code {code}, {answers} answers")
            if code == 3:
                break
        except (OSError, asyncio.TimeoutError) as error:
            failed = error
        finally:
            if transport:
                transport.close()
    raise failed


async def dns(number):
    began = time.monotonic()
    try:
        await look_up(number)
        LOG.good("dns", began, NAME)
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        LOG.lost("dns", began, DNS_NAME, reason(error))


async def one_echo(expected):
    """One long-lived connection, until something is wrong with it. `expected[1]` is the machine at its other end."""
    reader, writer = await asyncio.wait_for(asyncio.open_connection(ECHO, 9090), LIMIT)
    try:
        banner = await asyncio.wait_for(reader.readline(), LIMIT)
        if not banner.startswith(b"hello from "):
            raise EOFError(f"ended before its first line: {banner!r}")
        expected[1], number = banner.decode().split()[-1], 0
        while True:
            expected[0], number = time.monotonic(), number + 1
            writer.write(f"{number}\n".encode())
            line = await asyncio.wait_for(reader.readline(), LIMIT)
            if line != f"{number}\n".encode():
                raise EOFError(f"ended after {number - 1} lines: {line!r}")
            LOG.good("echo", expected[0], expected[1])
            await asyncio.sleep(1 / SLOW_FLOWS_PACE)
    finally:
        writer.close()


async def echo():
    while True:
        expected = [time.monotonic(), None]
        try:
            await one_echo(expected)
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            what = "connection" if expected[1] else "new connection"
            LOG.lost("echo", expected[0], f"{ECHO}:9090", f"{what}: {reason(error)}", by=expected[1])
            await asyncio.sleep(1.0)


async def main():
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    waiting, connection = set(), asyncio.ensure_future(echo())  # A task that nobody holds may be collected.
    number, due_http, due_dns = 0, time.monotonic(), time.monotonic()
    while not ending.is_set():
        now = time.monotonic()
        # What was missed while the machine was busy is not made up for: the pace is what it can do.
        due_http, due_dns = max(due_http, now - 1), max(due_dns, now - 1)
        new = []
        if now >= due_http:
            due_http += 1 / PACE
            new.append(http())
        if now >= due_dns:
            due_dns += 1 / SLOW_FLOWS_PACE
            number = number % 65535 + 1
            new.append(dns(number))
        for one in new:
            if len(waiting) >= WAITING:
                one.close()
                continue
            task = asyncio.ensure_future(one)
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        LOG.flush()
        await asyncio.sleep(max(0.0, min(due_http, due_dns) - time.monotonic()))
    # What is under way is still answered, or lost. The long-lived connection ends with the process.
    if waiting:
        await asyncio.wait(waiting, timeout=LIMIT + DNS_ATTEMPTS * DNS_TIMEOUT)
    LOG.flush(all_of_it=True)
    LOG.write({"over": NAME, "pid": os.getpid()})
    os._exit(0)


os.setgroups([])
os.setgid(USER)
os.setuid(USER)
asyncio.run(main())
