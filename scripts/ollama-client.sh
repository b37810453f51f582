#!/usr/bin/env bash
# ollama-client.sh FOLDER: prints the path of Ollama's command-line client, building it into FOLDER where it is missing. Needs Go, and no C compiler.
#
# It is built from the Go module of a release. What that module has of the server can't be built: it lacks the C++ headers that its copy of llama.cpp is
# compiled with, since folders called `vendor` are left out of modules. Therefore three things of the server are put aside, and the client, which is all
# that `ollama list`, `ps`, `show`, `run` and the like are, is built as it was released: `server`, of which it calls one function for `ollama serve`;
# `runner`, of which it calls one for `ollama runner`; and the file by which `server` starts models that draw.
set -euo pipefail
version=0.17.4
module=github.com/ollama/ollama
mkdir -p "$1"
folder=$(cd "$1" && pwd)
client=$folder/ollama-$version
if [ -x "$client" ]; then
    echo "$client"
    exit
fi
if ! command -v go >/dev/null; then
    echo "ollama-client.sh: $module@v$version is built with Go, which is not installed" >&2
    exit 3
fi
work=$(mktemp -d "$folder/building.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

# Checked by go against the sums that its checksum database has.
if ! found=$(cd "$work" && go mod download -json "$module@v$version"); then
    echo "ollama-client.sh: go finds no $module@v$version at GOPROXY=$(go env GOPROXY): $found" >&2
    exit 3
fi
cp -r "$(sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p' <<<"$found")" "$work/source"
chmod -R u+w "$work/source"
cd "$work/source"
rm -r server runner x/imagegen/server.go
mkdir server runner
cat >server/server.go <<'GO'
// Package server stands in for what the client does not need.
package server

import (
	"errors"
	"net"
)

func Serve(net.Listener) error { return errors.New("this build is a client only") }
GO
cat >runner/runner.go <<'GO'
// Package runner stands in for what the client does not need.
package runner

import "errors"

func Execute([]string) error { return errors.New("this build is a client only") }
GO
CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -ldflags "-s -w -X $module/version.Version=$version" -o "$work/ollama" . >&2
mv "$work/ollama" "$client"
echo "$client"
