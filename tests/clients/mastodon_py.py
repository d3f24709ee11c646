"""Mastodon.py, unchanged: stream_user over Server-Sent Events. Where the streams are it learns from an instance,
which a few lines here stand in for."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from mastodon import Mastodon, StreamListener

base, token = sys.argv[1:]


class Instance(BaseHTTPRequestHandler):
    def do_GET(self):
        streaming = base.replace("http", "ws")
        body = json.dumps(
            {
                "uri": "test.example",
                "domain": "test.example",
                "version": "4.5.0",
                "urls": {"streaming_api": streaming},
                "configuration": {"urls": {"streaming": streaming}},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def tell(event, payload):
    print(json.dumps({"stream": ["user"], "event": event, "payload": payload}, default=str), flush=True)


class Listener(StreamListener):
    def on_update(self, status):
        tell("update", json.dumps({"id": str(status["id"])}))

    def on_delete(self, status_id):
        tell("delete", str(status_id))

    def on_notification(self, notification):
        tell("notification", json.dumps({"id": str(notification["id"])}))


instance = HTTPServer(("127.0.0.1", 0), Instance)
threading.Thread(target=instance.serve_forever, daemon=True).start()
mastodon = Mastodon(
    access_token=token,
    api_base_url=f"http://127.0.0.1:{instance.server_port}",
    mastodon_version="4.4.0",
    version_check_mode="none",
)
print(json.dumps({"open": True}), flush=True)
try:
    mastodon.stream_user(Listener())
    reason = None
except Exception as ended:  # by version the end of the stream is an exception or a return
    reason = str(ended)
print(json.dumps({"closed": True, "reason": reason}), flush=True)
