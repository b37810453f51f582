"""Ollama's command-line client, as it was released, at the door of a node that has a simulated GPU: `make test-ollama`.

What it prints is compared with what the operator planned, in Ollama's own words. Without STOWAGE_OLLAMA, its path, the tests are left out.
"""

import os
import re
import subprocess

import httpx
import pytest

from servers import ASSISTANT, MODEL, SERVERS

PROGRAM = os.environ.get("STOWAGE_OLLAMA")
pytestmark = pytest.mark.skipif(not PROGRAM, reason="needs STOWAGE_OLLAMA, Ollama's client (scripts/ollama-client.sh)")
PLACED = {MODEL: "100% GPU", ASSISTANT: "100% GPU", "split": r"\d+%/\d+% CPU/GPU", "on-cpu": "100% CPU"}
CONTEXT = {MODEL: "2048", ASSISTANT: "2048", "split": "1024", "on-cpu": "512"}
# Cursor movements, which it writes whether or not there is a terminal.
CONTROLS = re.compile(r"\x1b\[[0-9?]*[A-Za-z]")


@pytest.fixture
def run(door, tmp_path):
    def run(*arguments):
        environment = {**os.environ, "OLLAMA_HOST": door, "HOME": str(tmp_path)}
        done = subprocess.run([PROGRAM, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, CONTROLS.sub("", done.stderr)

    return run


@pytest.fixture
def prints(run):
    def prints(*arguments):
        code, out, err = run(*arguments)
        assert code == 0, err
        return out

    return prints


@pytest.fixture
def fails(run):
    def fails(*arguments):
        code, out, err = run(*arguments)
        assert code == 1 and "Error: " in err, out + err
        return err.split("Error: ")[1]

    return fails


def table(text):
    """The rows by the first column's name, without its tag: each cell by its column."""
    head, *rows = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    return {row[0].removesuffix(":latest"): dict(zip(head, row, strict=True)) for row in rows}


def test_list_has_every_name_with_the_size_of_its_file(prints):
    listed = table(prints("list"))
    assert set(listed) == {*PLACED, "smollm2:135m"}
    for model in listed.values():
        assert model["SIZE"] == "98 MB" and re.fullmatch("[0-9a-f]{12}", model["ID"]) and model["MODIFIED"]


def test_ps_says_where_each_model_was_placed_with_which_context_and_for_how_long(prints, door):
    running = table(prints("ps"))
    planned = {model["name"].removesuffix(":latest"): model for model in httpx.get(f"{door}/api/ps").json()["models"]}
    assert set(running) == set(planned) == set(PLACED)
    for name, model in running.items():
        assert re.fullmatch(PLACED[name], model["PROCESSOR"])
        # As `kubectl get modeldeployments` has it too.
        assert model["PROCESSOR"] == planned[name]["processor"]
        assert (model["CONTEXT"], model["UNTIL"]) == (CONTEXT[name], "Forever")
        # Which it cuts off, not rounds.
        assert model["SIZE"] == f"{planned[name]['size'] // 1_000_000} MB"
    assert set(table(prints("ps", "spl"))) == {"split"}


def test_show_says_what_the_model_is_and_can(prints):
    shown = prints("show", ASSISTANT)
    for line in (r"architecture +llama", r"parameters +134\.52M", r"context length +8192", r"embedding length +576", r"quantization +Q4_1"):
        assert re.search(line, shown), f"{line} in {shown}"
    for capability in ("completion", "tools", "thinking"):
        assert capability in shown.partition("Capabilities")[2]
    assert re.search(r"num_ctx +2048", shown.partition("Parameters")[2])
    assert "tools" not in prints("show", MODEL).partition("Capabilities")[2]


def test_show_gives_each_part_by_itself(prints):
    assert re.search(r"num_ctx +512\ntemperature +0", prints("show", "on-cpu", "--parameters"))
    assert "<|im_start|>" in prints("show", MODEL, "--template")
    assert "FROM split\n" in prints("show", "split", "--modelfile")
    assert re.search(r"llama\.block_count +30", prints("show", "split", "--verbose"))


def test_run_answers_a_prompt(run):
    for model in PLACED:
        code, answer, err = run("run", model, "Say hello in one short sentence.", "--verbose", *(["--think=false"] if model == ASSISTANT else []))
        assert code == 0 and answer.strip(), err
        for figure in ("total duration", "prompt eval count", "prompt eval rate", "eval count", "eval rate"):
            # Where the answer took a while, what turned meanwhile stands before the first.
            assert re.search(rf"(^|[^a-z] ?){figure}: +\d", err, re.MULTILINE), f"{figure} in {err}"


def test_run_holds_an_answer_to_json_and_says_what_can_not_be(prints, fails):
    assert prints("run", "on-cpu", "Describe the sea.", "--format", "json").lstrip().startswith("{")
    assert "think" in fails("run", MODEL, "Hello", "--think=true")


def test_what_manages_models_says_what_to_do_instead(fails):
    assert "ModelDeployment" in fails("pull", "llama3.2")
    # What is not there would be pulled.
    assert "models are not pulled through this API" in fails("run", "llama3.2", "Hello")
    assert f"delete ModelDeployment default/{MODEL}" in fails("stop", MODEL)
    assert "couldn't find model" in fails("stop", "llama3.2")
    assert "delete its ModelDeployment" in fails("rm", MODEL)
    assert "spec.aliases" in fails("cp", MODEL, "other")


def test_version_is_that_of_the_api(prints, door):
    assert f"ollama version is {httpx.get(f'{door}/api/version').json()['version']}" in prints("--version")
