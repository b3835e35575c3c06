"""The way of the machines to the Kubernetes API, which can fail on demand: gate.py DIRECTORY ADDRESS PORT TARGET-PORT CERTIFICATE KEY

DIRECTORY/gate says how: `pass`, `429`, `500` (every request is answered so), `hang` (nothing is answered) or `refuse`
(connections are reset). A change ends the connections that are open.
"""

import asyncio
import pathlib
import ssl
import sys

DIRECTORY, ADDRESS, PORT, TARGET, CERTIFICATE, KEY = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6]
ANSWERS = {"429": ("429 Too Many Requests", "TooManyRequests"), "500": ("500 Internal Server Error", "InternalError")}
open_connections = set()


def mode():
    try:
        return (DIRECTORY / "gate").read_text().strip()
    except OSError:
        return "pass"


async def carry(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def answer(reader, writer, status, why):
    body = f'{{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"{why}","message":"chaos","code":{status[:3]}}}'
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode(errors="replace")
        lengths = [int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length:")]
        await reader.readexactly(sum(lengths))
        again = "Retry-After: 1\r\n" if status.startswith("429") else ""
        writer.write(f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{again}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()


async def serve(reader, writer):
    now = mode()
    open_connections.add(writer)
    try:
        if now == "refuse":
            writer.transport.abort()
        elif now == "hang":
            await reader.read(-1)
        elif now in ANSWERS:
            await answer(reader, writer, *ANSWERS[now])
        else:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            far_reader, far_writer = await asyncio.open_connection(ADDRESS, TARGET, ssl=context)
            open_connections.add(far_writer)
            try:
                await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))
            finally:
                open_connections.discard(far_writer)
                far_writer.close()
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
        pass
    finally:
        open_connections.discard(writer)
        writer.close()


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    server = await asyncio.start_server(serve, ADDRESS, PORT, ssl=context)
    print("listening", flush=True)
    before = mode()
    async with server:
        while True:
            await asyncio.sleep(0.1)
            if (now := mode()) != before:
                before = now
                for writer in list(open_connections):
                    writer.transport.abort()


asyncio.run(main())
