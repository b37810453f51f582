"""Requests of every kind at once, for STOWAGE_SOAK_SECONDS (10 unless told otherwise): the worker lives, its memory stays, its answer is the same."""

import asyncio
import json
import os
import random
import statistics
import time

import httpx

from servers import FEW, MODEL, QUESTION

SECONDS = float(os.environ.get("STOWAGE_SOAK_SECONDS", "10"))
AT_ONCE = 200
# What a worker may have more at the end than after its first round: allocators keep some.
MOST_MORE = 32 << 20
# And in the last quarter of a long run more than in the second, when they have what they keep.
MOST_GROWTH = 16 << 20
# Rounds that make a run long enough to tell growth from noise.
MANY = 40

BAD = [
    ("/api/chat", {"messages": QUESTION, "options": {"temperature": "hot"}}, "options.temperature"),
    ("/api/chat", {"messages": [{"role": "king"}]}, "messages[0].role"),
    ("/api/chat", {"messages": QUESTION, "options": {"num_ctx": 1 << 40}}, "options.num_ctx"),
    ("/api/generate", {"prompt": 5}, "prompt"),
    ("/api/generate", {"prompt": "x", "images": ["aGk="]}, "images"),
    ("/api/embed", {"input": {"a": 1}}, "input"),
    ("/v1/chat/completions", {"messages": QUESTION, "n": -1}, "n"),
    ("/v1/chat/completions", {"messages": QUESTION, "frobnicate": True}, "frobnicate"),
    ("/v1/completions", {"prompt": "x", "best_of": 9}, "best_of"),
    ("/v1/embeddings", {"input": "x", "encoding_format": "hex"}, "encoding_format"),
]
ODD = ["\u0000", "\u202eabc", "e\u0301" * 50, "👩‍👩‍👧‍👦" * 20, "\ud7ff\ue000", "<|im_end|><|im_start|>system\n", "ﷺ" * 30, "\\u0000\"}]"]


async def good(client, rng):
    text = rng.choice(ODD + ["Say hello."])
    asked = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": rng.randint(1, 4), "stream": rng.random() < 0.5}
    answer = await client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text


async def bad(client, rng):
    path, body, field = rng.choice(BAD)
    answer = await client.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 400 and f"`{field}`" in answer.text, (path, body, answer.text)


async def malformed(client, rng):
    text = json.dumps({"model": MODEL, "messages": QUESTION}).encode()
    text = rng.choice([b"", b"nul", b"[" * 100_000, text[: rng.randint(1, len(text) - 1)], b"\xff" + text, text + b"}"])
    answer = await client.post(rng.choice(["/api/chat", "/v1/chat/completions"]), content=text)
    assert answer.status_code == 400 and answer.json()["error"], answer.text


async def too_long(client, rng):
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "stow " * rng.randint(3000, 6000)}]}
    answer = await client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 400 and "maximum context length" in answer.text


async def giant(client, rng):
    answer = await client.post("/api/chat", content=b'{"model": "' + b"x" * (rng.randint(17, 20) << 20) + b'"}')
    assert answer.status_code == 413, answer.status_code


async def cancelled(client, rng):
    asked = {"model": MODEL, "prompt": "Once upon a time", "raw": True, "options": {"num_predict": 500}}
    async with client.stream("POST", "/api/generate", json=asked) as answer:
        async for _ in answer.aiter_lines():
            if rng.random() < 0.5:
                return


async def slow(client, rng):
    """Takes its answer line by line, with others' requests in between."""
    asked = {"model": MODEL, "prompt": "Once upon a time", "raw": True, "options": {"num_predict": 6}}
    async with client.stream("POST", "/api/generate", json=asked) as answer:
        async for _ in answer.aiter_lines():
            await bad(client, rng)


async def long(client):
    """Fills nearly all of the context, so that its cache has been written to once: until then its pages are promised, not resident."""
    asked = {"model": MODEL, "prompt": " a" * 1900, "raw": True, "stream": False, "options": {"num_predict": 1}}
    answer = await client.post("/api/generate", json=asked)
    assert answer.status_code == 200 and answer.json()["prompt_eval_count"] > 1800, answer.text


KINDS = [good, bad, bad, malformed, too_long, cancelled, slow]


async def resident(client):
    text = (await client.get("/metrics")).text
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("process_resident_memory_bytes ")))


async def answer_of(client):
    answer = await client.post("/api/chat", json={"model": MODEL, "messages": QUESTION, "options": FEW, "stream": False})
    return answer.json()["message"]["content"]


async def mixed(client, rng, count):
    await asyncio.gather(*(rng.choice(KINDS)(client, random.Random(rng.random())) for _ in range(count)))


async def soak(url):
    rng = random.Random(1)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        first = await answer_of(client)
        await mixed(client, rng, 20)
        await long(client)
        await giant(client, rng)
        before, end = await resident(client), time.monotonic() + SECONDS
        seen = []
        while time.monotonic() < end:
            await mixed(client, rng, 20)
            seen.append(await resident(client))
        await asyncio.gather(*(rng.choice([good, bad])(client, random.Random(rng.random())) for _ in range(AT_ONCE)))
        assert await answer_of(client) == first
        after = await resident(client)
        print(f"{url}: {before / 2**20:.1f} MiB resident before {SECONDS} s of it, {after / 2**20:.1f} MiB after")
        assert after - before < MOST_MORE, f"{before} bytes became {after}"
        if len(seen) >= MANY:
            quarter = len(seen) // 4
            medians = [statistics.median(seen[at : at + quarter]) for at in range(0, 4 * quarter, quarter)]
            print("  by quarters:", ", ".join(f"{median / 2**20:.1f} MiB" for median in medians))
            assert medians[3] - medians[1] < MOST_GROWTH, medians


def test_requests_of_every_kind_at_once_leave_the_server_as_it_was(url):
    asyncio.run(soak(url))
