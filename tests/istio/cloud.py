"""A machine's metadata service as AWS has it in its second version: no answer without a token, at the address of all clouds."""

import http.server
import json
import sys

DOCUMENT = {"region": "eu-west-1", "availabilityZone": "eu-west-1a", "instanceId": "i-0abc", "instanceType": "m7i.large"}
TAGS = {"team": "Web & Shop"}
TOKEN = "token-of-this-instance"


class Metadata(http.server.BaseHTTPRequestHandler):
    def do_PUT(self):
        lives = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "").isdigit()
        self.answer(TOKEN if lives and self.path == "/latest/api/token" else None)

    def do_GET(self):
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            return self.send_error(401)
        tag = self.path.removeprefix("/latest/meta-data/tags/instance/")
        is_document = self.path == "/latest/dynamic/instance-identity/document"
        self.answer(json.dumps(DOCUMENT) if is_document else TAGS.get(tag))

    def answer(self, text):
        if text is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


if __name__ == "__main__":
    server = http.server.HTTPServer((sys.argv[1], 80), Metadata)
    print("listening", file=sys.stderr, flush=True)
    server.serve_forever()
