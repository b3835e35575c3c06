"""A resolver of the world outside, by UDP and TCP: resolver.py ADDRESS NAME=IPV4..."""

import socket
import socketserver
import sys
import threading

ADDRESS, *PAIRS = sys.argv[1:]
KNOWN = {name.encode(): socket.inet_aton(ip) for name, _, ip in (pair.partition("=") for pair in PAIRS)}


def answer(query):
    end, labels = 12, []
    while query[end]:
        labels.append(query[end + 1:end + 1 + query[end]].lower())
        end += query[end] + 1
    question, kind = query[12:end + 5], query[end + 1:end + 3]
    address = KNOWN.get(b".".join(labels))
    records = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x01\x00\x04" + address if address and kind == b"\x00\x01" else b""
    flags = b"\x81\x80" if address else b"\x81\x83"
    return query[:2] + flags + b"\x00\x01" + bytes([0, bool(records)]) + b"\x00\x00\x00\x00" + question + records


class Datagrams(socketserver.BaseRequestHandler):
    def handle(self):
        self.request[1].sendto(answer(self.request[0]), self.client_address)


class Streams(socketserver.BaseRequestHandler):
    def handle(self):
        size = int.from_bytes(self.request.recv(2, socket.MSG_WAITALL), "big")
        said = answer(self.request.recv(size, socket.MSG_WAITALL))
        self.request.sendall(len(said).to_bytes(2, "big") + said)


socketserver.TCPServer.allow_reuse_address = True
udp, tcp = socketserver.ThreadingUDPServer((ADDRESS, 53), Datagrams), socketserver.ThreadingTCPServer((ADDRESS, 53), Streams)
threading.Thread(target=udp.serve_forever, daemon=True).start()
print("listening", flush=True)
tcp.serve_forever()
