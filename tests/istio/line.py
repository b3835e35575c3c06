"""One TCP connection whose two ends are driven by hand: line.py listen ADDRESS PORT, or line.py call ADDRESS PORT.

What arrives on standard input is sent, and what is received is printed, line by line.
"""

import signal
import socket
import sys
import threading

# An end that nobody hears of any more is no reason to wait for ever.
signal.alarm(60)
how, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
if how == "listen":
    with socket.create_server((address, port)) as server:
        print("listening", flush=True)
        end, _ = server.accept()
else:
    end = socket.create_connection((address, port), timeout=20)
    end.settimeout(None)
print("connected", flush=True)


def send():
    for line in sys.stdin:
        end.sendall(line.encode())


threading.Thread(target=send, daemon=True).start()
try:
    for line in end.makefile():
        print(line, end="", flush=True)
except OSError as error:
    print(error, flush=True)
