"""Mastodon.py: its own stream listener on `user`, reconnecting by itself.

The library asks the instance where it streams; a small server here answers that as Rails would.
"""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mastodon import Mastodon, StreamListener

STREAMING = os.environ["STREAMING_WS"]


class Rails(BaseHTTPRequestHandler):
    def do_GET(self):
        answers = {
            "/api/v1/instance": {"uri": "social.example", "version": "4.6.0", "urls": {"streaming_api": STREAMING}},
            "/api/v2/instance": {
                "domain": "social.example",
                "version": "4.6.0",
                "configuration": {"urls": {"streaming": STREAMING}},
            },
        }
        answer = answers.get(self.path.split("?")[0].rstrip("/"))
        body = json.dumps({"error": "Not found"} if answer is None else answer).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Listener(StreamListener):
    def on_update(self, status):
        print("update", status["id"], flush=True)

    def on_notification(self, notification):
        print("notification", notification["id"], flush=True)

    def on_delete(self, status_id):
        print("delete", status_id, flush=True)

    def on_abort(self, err):
        print("closed", flush=True)


rails = ThreadingHTTPServer(("127.0.0.1", 0), Rails)
threading.Thread(target=rails.serve_forever, daemon=True).start()
mastodon = Mastodon(
    access_token=os.environ["TOKEN"],
    api_base_url=f"http://127.0.0.1:{rails.server_port}",
    version_check_mode="none",
)
assert mastodon.stream_healthy(), "the streaming server is not healthy"
handle = mastodon.stream_user(Listener(), run_async=True, reconnect_async=True, reconnect_async_wait_sec=0.2)
threading.Event().wait()
