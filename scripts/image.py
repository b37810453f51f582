#!/usr/bin/env python3
"""image.py NAME BINARY FOLDER: makes an OCI archive of a program without a container runtime, and the list of what is in it.

FOLDER gets NAME.tar (an image layout, as `ctr images import`, `skopeo copy oci-archive:` and `docker load` take it), NAME.digest (the manifest's) and
NAME.spdx.json (the SBOM). The image is one layer: the program, stripped; the loader and the libraries that it needs, from this machine; certificates of
authorities; a user who is not root. The same inputs give the same bytes: names are sorted, and every time is the commit's (or SOURCE_DATE_EPOCH).
"""

import argparse
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import tarfile
import tempfile
import uuid
import zlib
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = "ghcr.io/stowage-dev"
SOURCE = "https://github.com/stowage-dev/stowage"
NONROOT = 65532
CERTIFICATES = [Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt")]
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Not linked by the program but by what is loaded at run time: NVML and the CUDA driver, which the NVIDIA runtime puts into the container.
LOADED_LATER = ["libdl.so.2", "libpthread.so.0", "librt.so.1", "libm.so.6"]
# The feature that embeds kernels for GPUs, and the package whose compiler made them.
CUDA = "stowage-agent/cuda"
CUDA_COMPILER = ROOT / "scripts/cuda/requirements.txt"


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


class Layer:
    """A file system in memory."""

    def __init__(self, time):
        self.time, self.entries = time, {}

    def file(self, path, content, mode=0o644):
        self.entries[path] = (tarfile.REGTYPE, mode, 0, content)

    def folder(self, path, mode=0o755, owner=0):
        self.entries[path] = (tarfile.DIRTYPE, mode, owner, b"")

    def tar(self):
        for path in list(self.entries):
            for parent in list(Path(path).parents)[:-1]:
                if str(parent) not in self.entries:
                    self.folder(str(parent))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for path, (kind, mode, owner, content) in sorted(self.entries.items()):
                entry = tarfile.TarInfo(path)
                entry.type, entry.mode, entry.mtime, entry.size = kind, mode, self.time, len(content)
                entry.uid = entry.gid = owner
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()


def stripped(binary):
    """Without what only debuggers read, which is most of it."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "stripped"
        output("strip", "--strip-unneeded", "-o", str(target), str(binary))
        return target.read_bytes()


def libraries(binary):
    """Paths of the loader and of the libraries that the program needs, as it looks for them."""
    found = [match[1] for line in output("ldd", str(binary)).splitlines() if (match := re.search(r"(/\S+) \(0x", line))]
    folders = sorted({str(Path(path).parent) for path in found if "/libc.so" in path})
    later = [f"{folder}/{name}" for folder in folders for name in LOADED_LATER]
    return sorted({*found, *(path for path in later if Path(path).exists())})


def layer(name, binary, libs, time):
    layer = Layer(time)
    layer.file(f"usr/bin/{name}", stripped(binary), 0o755)
    for path in libs:
        layer.file(path.lstrip("/"), Path(path).resolve().read_bytes(), 0o755)
    certificates = next((path for path in CERTIFICATES if path.is_file()), None)
    if certificates is None:
        raise SystemExit(f"image.py: none of {', '.join(map(str, CERTIFICATES))} is here: install ca-certificates")
    layer.file("etc/ssl/certs/ca-certificates.crt", certificates.read_bytes())
    layer.file("etc/passwd", f"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{NONROOT}:{NONROOT}:nonroot:/:/sbin/nologin\n".encode())
    layer.file("etc/group", f"root:x:0:\nnonroot:x:{NONROOT}:\n".encode())
    layer.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n")
    layer.folder("tmp", 0o1777)
    if name == "stowage-agent":
        for folder in ("var/lib/stowage/models", "var/lib/stowage/cache", "run/stowage"):
            layer.folder(folder, owner=NONROOT)
    return layer.tar()


def gzipped(data):
    """With neither a time nor a name in its head."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    return compressor.compress(data) + compressor.flush()


def config(name, version, revision, created, layer_digest):
    titles = {"stowage-operator": "The cluster side of Stowage", "stowage-agent": "The node side of Stowage"}
    return {
        "created": created,
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {
            "User": f"{NONROOT}:{NONROOT}",
            "Env": ["PATH=/usr/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
            "Entrypoint": [f"/usr/bin/{name}"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": name,
                "org.opencontainers.image.description": titles.get(name, name),
                "org.opencontainers.image.source": SOURCE,
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.revision": revision,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        "history": [{"created": created, "created_by": "scripts/image.py"}],
    }


class Archive:
    """An image layout, which `docker load` of any age reads too."""

    def __init__(self, time):
        self.time, self.files = time, {}

    def blob(self, content):
        digest = hashlib.sha256(content).hexdigest()
        self.files[f"blobs/sha256/{digest}"] = content
        return f"sha256:{digest}"

    def json(self, value):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    def write(self, path):
        layer = Layer(self.time)
        for name, content in self.files.items():
            layer.file(name, content)
        partial = path.with_suffix(".partial")
        partial.write_bytes(layer.tar())
        partial.rename(path)


def image(name, tag, tar, make_config, time):
    archive = Archive(time)
    compressed = gzipped(tar)
    layer_digest = archive.blob(compressed)
    content = archive.json(make_config("sha256:" + hashlib.sha256(tar).hexdigest()))
    config_digest = archive.blob(content)
    manifest = archive.json({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": len(content)},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer_digest, "size": len(compressed)}],
    })
    digest = archive.blob(manifest)
    reference = f"{REGISTRY}/{name}:{tag}"
    archive.files["oci-layout"] = archive.json({"imageLayoutVersion": "1.0.0"})
    archive.files["index.json"] = archive.json({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": len(manifest),
            "platform": {"architecture": ARCHITECTURES[platform.machine()], "os": "linux"},
            "annotations": {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": tag},
        }],
    })
    blob = lambda digest: "blobs/sha256/" + digest.removeprefix("sha256:")
    archive.files["manifest.json"] = archive.json([{"Config": blob(config_digest), "RepoTags": [reference], "Layers": [blob(layer_digest)]}])
    return archive, digest, len(compressed)


def crates(name, features):
    """The packages that are compiled into the program, with what each needs: (root, {id: package}, {id: [id]})."""
    host = re.search(r"host: (\S+)", output("rustc", "-vV"))[1]
    flags = [f"--features={features}"] if features else []
    metadata = json.loads(output("cargo", "metadata", "--locked", "--format-version=1", f"--filter-platform={host}", *flags))
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = next((id for id, package in packages.items() if package["name"] == name), None)
    if root is None:
        raise SystemExit(f"image.py: the workspace has no package {name} whose parts could be listed: --without-sbom makes an image without that")
    needed, open_ones = {}, [root]
    while open_ones:
        id = open_ones.pop()
        if id not in needed:
            normal = [dep["pkg"] for dep in nodes[id]["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])]
            needed[id] = sorted(normal)
            open_ones.extend(normal)
    return root, {id: packages[id] for id in needed}, needed


def checksums():
    """Of the crates, as Cargo.lock has them."""
    lock = (ROOT / "Cargo.lock").read_text()
    pattern = r'name = "([^"]+)"\nversion = "([^"]+)"\nsource = "[^"]+"\nchecksum = "([0-9a-f]{64})"'
    return {(name, version): checksum for name, version, checksum in re.findall(pattern, lock)}


def system_packages(libs):
    """Debian's packages of the libraries, with their versions; none on another system, where the libraries are listed as files alone."""
    names = set()
    for path in libs:
        for candidate in (path, str(Path(path).resolve()), "/usr" + path, "/usr" + str(Path(path).resolve())):
            found = subprocess.run(["dpkg", "-S", candidate], capture_output=True, text=True) if Path("/usr/bin/dpkg").exists() else None
            if found and found.returncode == 0:
                names.add(found.stdout.split(": ")[0].split(",")[0])
                break
    query = lambda name: output("dpkg-query", "-W", "-f=${Package} ${Version} ${Architecture}", name).split(" ")
    return [query(name) for name in sorted(names)]


def cuda_compiler():
    """Name and version of the package from PyPI that the kernels were compiled with."""
    return re.search(r"^(\S+)==(\S+)$", CUDA_COMPILER.read_text(), re.M).groups()


def sbom(name, version, features, libs, layer_digest, created):
    root, packages, needs = crates(name, features)
    known = checksums()
    reference = lambda id: "SPDXRef-crate-" + re.sub(r"[^A-Za-z0-9.-]", "-", f"{packages[id]['name']}-{packages[id]['version']}")
    purl = lambda locator: [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator}]
    listed, relations = [], [("SPDXRef-DOCUMENT", "DESCRIBES", reference(root))]
    for id in sorted(packages, key=reference):
        package = packages[id]
        # Some write what SPDX writes with OR in the way that cargo once did.
        licence = (package["license"] or "NOASSERTION").replace("/", " OR ")
        entry = {
            "SPDXID": reference(id),
            "name": package["name"],
            "versionInfo": package["version"],
            "downloadLocation": package["repository"] or "NOASSERTION",
            "filesAnalyzed": False,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": licence,
            "copyrightText": "NOASSERTION",
        }
        if package["source"]:
            entry["externalRefs"] = purl(f"pkg:cargo/{package['name']}@{package['version']}")
            checksum = known.get((package["name"], package["version"]))
            entry["checksums"] = [{"algorithm": "SHA256", "checksumValue": checksum}] if checksum else []
        listed.append(entry)
        relations += [(reference(id), "DEPENDS_ON", reference(other)) for other in needs[id]]
    foreign = lambda id, name, version, locator: {
        "SPDXID": id,
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": purl(locator),
    }
    for package, package_version, architecture in system_packages(libs):
        id = f"SPDXRef-deb-{package}"
        listed.append(foreign(id, package, package_version, f"pkg:deb/debian/{package}@{package_version}?arch={architecture}"))
        relations.append((reference(root), "DYNAMIC_LINK", id))
    if name == "stowage-agent" and CUDA in features.split(","):
        compiler, compiler_version = cuda_compiler()
        id = f"SPDXRef-pypi-{compiler}"
        listed.append(foreign(id, compiler, compiler_version, f"pkg:pypi/{compiler}@{compiler_version}"))
        relations.append((id, "BUILD_TOOL_OF", reference(root)))
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{name}-{version}",
        "documentNamespace": f"{SOURCE}/sbom/{name}-{version}-{uuid.uuid5(uuid.NAMESPACE_URL, layer_digest)}",
        "creationInfo": {"created": created, "creators": ["Tool: stowage-image.py"]},
        "packages": listed,
        "relationships": [{"spdxElementId": a, "relationshipType": kind, "relatedSpdxElement": b} for a, kind, b in relations],
    }


def commit(of):
    """What git says of the commit; nothing, where this is no checkout."""
    found = subprocess.run(["git", "log", "-1", f"--format={of}"], capture_output=True, text=True, cwd=ROOT)
    return found.stdout.strip() if found.returncode == 0 else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the package whose program it is; with --without-sbom, of any program")
    parser.add_argument("binary", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tag", help="of the image; the workspace's version where it is missing")
    parser.add_argument("--features", default="", help="of the workspace, that the program was built with")
    parser.add_argument("--without-sbom", action="store_true", help="for an image that nobody is given, such as one of tests")
    arguments = parser.parse_args()
    version = re.search(r'^\[workspace\.package\]\nversion = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    time = int(os.environ.get("SOURCE_DATE_EPOCH") or commit("%ct") or 0)
    created = datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    libs = libraries(arguments.binary)
    tar = layer(arguments.name, arguments.binary, libs, time)
    make_config = lambda digest: config(arguments.name, version, commit("%H"), created, digest)
    archive, digest, size = image(arguments.name, arguments.tag or version, tar, make_config, time)
    parts = None if arguments.without_sbom else sbom(arguments.name, version, arguments.features, libs, digest, created)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / f"{arguments.name}.tar"
    archive.write(path)
    (arguments.folder / f"{arguments.name}.digest").write_text(digest + "\n")
    listed = ""
    if parts:
        (arguments.folder / f"{arguments.name}.spdx.json").write_text(json.dumps(parts, indent=1) + "\n")
        listed = f"{len(parts['packages'])} packages, "
    print(f"{path}: {size / 2**20:.1f} MiB, {listed}{digest}")


main()
