"""Clients that stream one completion after the other and compare each with the text without faults."""

import http.client
import json
import threading
import time

PROMPTS = ["And God said,", "Call me Ishmael.", "The whale", "My fellow citizens,"]


class Streams:
    """Every request ends as one of: right, wrong (another text than without faults), refused (nobody listens, or
    429 or 503), error (an answer that says so), lost (accepted, and its connection broke)."""

    def __init__(self, host, port, count, tokens):
        self.host, self.port, self.tokens = host, port, tokens
        self.lock = threading.Lock()
        self.ended = []   # (begin, end, outcome, longest pause between two pieces)
        self.notes = []   # of what was not right
        self.ending = False
        self.began = [0.0] * count  # of each client's request that is under way
        self.expected = [self.ask(i, None)[1] for i in range(count)]
        self.threads = [threading.Thread(target=self.keep, args=(i,), daemon=True) for i in range(count)]
        for thread in self.threads:
            thread.start()

    def ask(self, i, pauses):
        """Outcome and text of one streamed completion."""
        body = json.dumps({"prompt": PROMPTS[i % len(PROMPTS)], "max_tokens": self.tokens, "seed": i,
                           "temperature": 0 if i < 4 else 0.9, "ignore_eos": True, "stream": True})
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        text, last, is_done = "", None, False
        try:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                return "refused" if answer.status in (429, 503) else "error", answer.read().decode()
            for line in answer:
                if line.startswith(b"data: [DONE]"):
                    is_done = True
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return "error", json.dumps(event["error"])
                now = time.monotonic()
                text += "".join(choice["text"] for choice in event.get("choices", []))
                if last is not None and pauses is not None:
                    pauses.append(now - last)
                last = now
        except ConnectionRefusedError:  # nobody listens: nothing was accepted
            return "refused", ""
        except (OSError, http.client.HTTPException) as error:
            return "lost", repr(error)
        finally:
            connection.close()
        return ("right", text) if is_done else ("lost", f"the stream ended after {len(text)} characters")

    def keep(self, i):
        while not self.ending:
            begin, pauses = time.monotonic(), []
            self.began[i] = begin
            outcome, text = self.ask(i, pauses)
            if outcome == "right" and text != self.expected[i]:
                outcome = "wrong"
            with self.lock:
                self.ended.append((begin, time.monotonic(), outcome, max(pauses, default=0.0)))
                if outcome not in ("right", "refused"):
                    self.notes.append(f"{outcome}: {text[:200]}")
            if outcome in ("lost", "refused", "error"):
                time.sleep(0.1)

    def await_begun_before(self, when, limit=120):
        """Returns when all requests that were under way at that time have ended; False: they don't."""
        end = time.monotonic() + limit
        while min(self.began) <= when and time.monotonic() < end:
            time.sleep(0.02)
        return min(self.began) > when

    def during(self, begin, end):
        """Outcomes of requests that were under way between the two times, and the longest pause."""
        counts, longest = {}, 0.0
        with self.lock:
            for request_begin, request_end, outcome, pause in self.ended:
                if request_end < begin or request_begin > end:
                    continue
                counts[outcome] = counts.get(outcome, 0) + 1
                longest = max(longest, pause)
        return counts, longest

    def stop(self):
        self.ending = True
        for thread in self.threads:
            thread.join(timeout=150)
