"""A legacy program, which knows nothing of meshes: app.py NAME DIRECTORY

HTTP on 9080 (`/` tells who answers and what headers arrived, `/large` sends 64 MiB, `/slow` takes two seconds and leaves
a file `arrived`, `/health` is 200 as long as there is no file `sick`), and on 9090 an echo that speaks first.
"""

import http.server
import json
import pathlib
import socket
import socketserver
import sys
import threading
import time

NAME, DIRECTORY = sys.argv[1], pathlib.Path(sys.argv[2])
LARGE = 64 * 1024 * 1024


class Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, code, body):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/large":
            self.send_response(200)
            self.send_header("Content-Length", str(LARGE))
            self.end_headers()
            for _ in range(LARGE // 65536):
                self.wfile.write(b"x" * 65536)
            return
        if self.path == "/slow":
            (DIRECTORY / "arrived").touch()
            time.sleep(2)
        if self.path == "/health":
            sick = (DIRECTORY / "sick").exists()
            return self.answer(503 if sick else 200, b"sick\n" if sick else b"well\n")
        if self.path == "/metrics":
            return self.answer(200, b"# TYPE app_answers counter\napp_answers 7\n")
        told = {"name": NAME, "from": self.client_address[0], "headers": {name.lower(): value for name, value in self.headers.items()}}
        self.answer(200, json.dumps(told).encode())

    def log_message(self, *_):
        pass


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(f"hello from {NAME}\n".encode())
        while data := self.request.recv(65536):
            self.request.sendall(data)


class Both:
    """IPv4 and IPv6 on one socket."""

    address_family, allow_reuse_address, daemon_threads, request_queue_size = socket.AF_INET6, True, True, 128

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class PageServer(Both, http.server.ThreadingHTTPServer):
    pass


class EchoServer(Both, socketserver.ThreadingTCPServer):
    pass


pages, echo = PageServer(("::", 9080), Pages), EchoServer(("::", 9090), Echo)
threading.Thread(target=echo.serve_forever, daemon=True).start()
print("listening", flush=True)
pages.serve_forever()
