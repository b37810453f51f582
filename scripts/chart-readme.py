#!/usr/bin/env python3
"""chart-readme.py [--check]: writes charts/stowage/README.md, whose table of values is made from the comments in values.yaml; or fails where it is stale.

A comment that begins with `# --` is the text of the key below it. A key with a text is a row."""

import json
import re
import sys
from pathlib import Path

CHART = Path(__file__).resolve().parent.parent / "charts/stowage"
KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):(?: (.*))?$")


def rows(lines):
    """Yields (path, default, text) of each key that has a text."""
    path, text, at = [], None, 0
    while at < len(lines):
        line = lines[at]
        at += 1
        comment = line.strip()
        if comment.startswith("# --"):
            text = comment.removeprefix("# --").strip()
        elif comment.startswith("#"):
            text = f"{text} {comment.removeprefix('#').strip()}" if text else None
        elif match := KEY.match(line):
            depth = len(match[1]) // 2
            path = path[:depth] + [match[2]]
            if text is None:
                continue
            if match[3] is None:
                sys.exit(f"chart-readme.py: line {at} of values.yaml: a key with a text has its default on its own line, as in {{a: {{b: 1}}}}")
            yield ".".join(path), match[3], text
            text = None
        else:
            text = None


def table(lines):
    cell = lambda text: text.replace("|", "\\|")
    yield "| value | default | what it does |"
    yield "|---|---|---|"
    for path, default, text in rows(lines):
        yield f"| `{path}` | `{cell(default)}` | {cell(text)} |"


def leaves(schema, definitions, path=()):
    """Every value that the schema knows, down to where it allows no further named ones."""
    schema = definitions[schema["$ref"].split("/")[-1]] if "$ref" in schema else schema
    if not schema.get("properties"):
        yield path
    for name, inner in schema.get("properties", {}).items():
        yield from leaves(inner, definitions, (*path, name))


def main():
    lines = (CHART / "values.yaml").read_text().splitlines()
    described = [path for path, _, _ in rows(lines)]
    schema = json.loads((CHART / "values.schema.json").read_text())
    covered = lambda leaf: any(leaf == path or leaf.startswith(path + ".") or path.startswith(leaf + ".") for path in described)
    missing = [leaf for leaf in map(".".join, leaves(schema, schema["$defs"])) if leaf != "global" and not covered(leaf)]
    if missing:
        sys.exit(f"chart-readme.py: values.schema.json has values of which values.yaml says nothing: {', '.join(missing)}")
    workspace = re.search(r'^\[workspace\.package\]\nversion = "(.*)"', (CHART.parent.parent / "Cargo.toml").read_text(), re.M)[1]
    chart = (CHART / "Chart.yaml").read_text()
    for key in ("version", "appVersion"):
        if f"\n{key}: {workspace}\n" not in chart:
            sys.exit(f"chart-readme.py: {key} in Chart.yaml is not the workspace's {workspace}")
    page = (CHART / "README.template.md").read_text().replace("{{ values }}\n", "".join(line + "\n" for line in table(lines)))
    target = CHART / "README.md"
    if "--check" not in sys.argv[1:]:
        target.write_text(page)
    elif not target.exists() or target.read_text() != page:
        sys.exit("chart-readme.py: charts/stowage/README.md is stale: run `make chart`")


main()
