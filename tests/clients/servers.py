"""Where the servers are that are tested.

    STOWAGE_WORKER_URL=http://127.0.0.1:40001 STOWAGE_DOOR_URL=http://127.0.0.1:11434 STOWAGE_MODEL=smollm2 pytest tests/clients

A URL that is not set leaves its half out; at least one must be. The model of assistant.yaml is asked for at the door.
"""

import os

SERVERS = {
    place: url.rstrip("/")
    for place, url in (("worker", os.environ.get("STOWAGE_WORKER_URL")), ("door", os.environ.get("STOWAGE_DOOR_URL")))
    if url
}
assert SERVERS, "set STOWAGE_WORKER_URL, STOWAGE_DOOR_URL or both"
MODEL = os.environ["STOWAGE_MODEL"]
# The ModelDeployment of assistant.yaml.
ASSISTANT = "assistant"
QUESTION = [{"role": "user", "content": "Say hello in one short sentence."}]
FEW = {"num_predict": 16, "temperature": 0, "seed": 1}
