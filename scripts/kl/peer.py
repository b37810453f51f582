"""Perplexities of a text by llama.cpp's server, with caches of f16, q8_0 and q4_0: `peer.py LLAMA_CPP_SH FOLDER MODEL TEXT TOKENS`.

MODEL is a name in FOLDER/root/models. Each token is asked for by itself: what came before it is in the server's cache, and its probability is among the
likeliest, or else among those of the whole vocabulary, which takes seconds.
"""

import json
import math
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CACHES = ["f16", "q8_0", "q4_0"]
LIKELIEST = [500, 16000]
"""So many probabilities are asked for first, and then: the server writes them all out as text."""

STARTING = 120.0
"""Seconds until a server must be there."""

ANSWERING = 900.0
"""Seconds that it may take for one answer: the probabilities of a large vocabulary, on a machine that does more than this."""


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWERING) as response:
        return json.load(response)


def wait(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + STARTING
    while True:
        try:
            ask(port, "/health")
            return
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"llama-server does not answer (exit status {server.poll()})") from None
            time.sleep(0.2)


def log_probability(port: int, before: list[int], token: int, among: list[int]) -> float:
    for count in among:
        body = {"prompt": before, "n_predict": 1, "n_probs": count, "temperature": -1, "cache_prompt": True}
        found = ask(port, "/completion", body)["completion_probabilities"][0]["top_logprobs"]
        for entry in found:
            if entry["id"] == token:
                return entry["logprob"]
    raise SystemExit(f"llama-server has no probability of token {token}")


def perplexity(port: int, text: str, count: int) -> float:
    plain, whole = (ask(port, "/tokenize", {"content": text, "add_special": special})["tokens"] for special in (False, True))
    # After the BOS that the model wants before every prompt.
    tokens = whole[: len(whole) - len(plain)] + plain[:count]
    vocabulary = ask(port, "/v1/models")["data"][0]["meta"]["n_vocab"]
    loss = 0.0
    for position in range(1, len(tokens)):
        loss -= log_probability(port, tokens[:position], tokens[position], [*LIKELIEST, vocabulary])
    return math.exp(loss / (len(tokens) - 1))


def main(script: str, folder: str, model: str, text: str, count: int) -> None:
    for cache in CACHES:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["-m", f"/models/{model}", "--host", "127.0.0.1", "--port", str(port), "-c", str(max(1024, count + 8)), "-np", "1"]
        options += ["-ctk", cache, "-ctv", cache, "-fa", "on", "--no-webui"]
        server = subprocess.Popen([script, folder, "llama-server", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait(port, server)
            print(f"llama.cpp, {cache} cache: perplexity {perplexity(port, Path(text).read_text(), count):.4f} over {count} tokens", flush=True)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
