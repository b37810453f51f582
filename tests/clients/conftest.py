import ollama
import openai
import pytest

from servers import SERVERS


@pytest.fixture(params=SERVERS)
def url(request):
    return SERVERS[request.param]


@pytest.fixture
def olla(url):
    return ollama.Client(host=url, timeout=300)


@pytest.fixture
def oai(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", timeout=300, max_retries=0)


@pytest.fixture
def door():
    if "door" not in SERVERS:
        pytest.skip("needs STOWAGE_DOOR_URL")
    return SERVERS["door"]
