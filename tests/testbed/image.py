#!/usr/bin/env python3
"""Writes an OCI image (a layout in a tar, one compressed layer) from files of this machine, without an image builder.

The same files give the same image, octet for octet. --like takes user, entrypoint and labels from the last stage of a
Dockerfile, so that what the tests run differs from what users build in nothing but the builder. --file with a folder
takes all of it; --libraries brings along the shared libraries that the programs among the files are linked with.
"""
import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tarfile

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="OUT.tar")
    parser.add_argument("name", help="REPOSITORY:TAG")
    parser.add_argument("--like", metavar="DOCKERFILE")
    parser.add_argument("--user", help="numeric, as runAsNonRoot demands: UID:GID")
    parser.add_argument("--entrypoint", action="append", default=[], help="repeatable: the program, then its arguments")
    parser.add_argument("--file", action="append", default=[], metavar="SOURCE=DESTINATION")
    parser.add_argument("--link", action="append", default=[], metavar="NAME=TARGET", help="a symbolic link")
    parser.add_argument("--folder", action="append", default=[], help="an empty folder that everybody may write to")
    parser.add_argument("--libraries", action="store_true")
    return parser.parse_args()


def last_stage(dockerfile):
    """USER, ENTRYPOINT and LABELs of a Dockerfile's last stage, as an image configuration spells them."""
    text = re.sub(r"^\s*#.*\n", "", open(dockerfile).read(), flags=re.M).replace("\\\n", " ")
    stage = re.split(r"^FROM .*$", text, flags=re.M)[-1]
    config = {"Labels": {}}
    for instruction, value in re.findall(r"^([A-Z]+)\s+(.+)$", stage, flags=re.M):
        if instruction == "USER":
            config["User"] = value.strip()
        elif instruction == "ENTRYPOINT":
            config["Entrypoint"] = json.loads(value)
        elif instruction == "LABEL":
            config["Labels"].update(pair.split("=", 1) for pair in shlex.split(value))
        elif instruction != "COPY":
            sys.exit(f"{dockerfile}: {instruction} in the last stage is not known to image.py")
    return config


def libraries(program):
    """Where the dynamic linker finds what the program needs, and the linker itself. Nothing for a static program."""
    if open(program, "rb").read(4) != b"\x7fELF":
        return []
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    return re.findall(r"(/\S+) \(0x", listed.stdout)


def entries(options):
    """Path in the image -> (mode, content) of a file, (mode, None) of a folder, (None, target) of a link."""
    found = {}
    sources = [pair.split("=", 1) for pair in options.file]
    if options.libraries:
        needed = sorted({library for source, _ in sources if os.path.isfile(source) for library in libraries(source)})
        sources += [(library, library) for library in needed]
    for source, destination in sources:
        if os.path.isdir(source):
            inner = [os.path.join(folder, name) for folder, _, names in os.walk(source) for name in names]
            files = [(path, os.path.join(destination, os.path.relpath(path, source))) for path in inner]
        else:
            files = [(source, destination)]
        for path, inside in files:
            mode = 0o755 if os.stat(path).st_mode & 0o111 else 0o644
            found[inside.lstrip("/")] = (mode, open(path, "rb").read())
    for name, target in (pair.split("=", 1) for pair in options.link):
        found[name.lstrip("/")] = (None, target)
    for folder in options.folder:
        found[folder.strip("/")] = (0o1777, None)
    return found


def archive(found):
    """The entries as a tar, in order and without times and owners."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, (mode, content) in sorted(found.items()):
            entry = tarfile.TarInfo(path)
            if mode is None:
                entry.type, entry.linkname, content = tarfile.SYMTYPE, content, b""
            elif content is None:
                entry.type, entry.mode, content = tarfile.DIRTYPE, mode, b""
            else:
                entry.mode, entry.size = mode, len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def main():
    options = arguments()
    config = {"WorkingDir": "/", **(last_stage(options.like) if options.like else {})}
    if options.user:
        config["User"] = options.user
    if options.entrypoint:
        config["Entrypoint"] = options.entrypoint
    machine = {"architecture": ARCHITECTURE[platform.machine()], "os": "linux"}
    blobs = {}

    def blob(kind, content):
        digest = hashlib.sha256(content).hexdigest()
        blobs["blobs/sha256/" + digest] = (0o644, content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": "sha256:" + digest, "size": len(content)}

    layer = archive(entries(options))
    layers = [blob("layer.v1.tar+gzip", gzip.compress(layer, mtime=0))]
    root = {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}
    described = blob("config.v1+json", json.dumps({**machine, "config": config, "rootfs": root}).encode())
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
    manifest = blob("manifest.v1+json", json.dumps({**manifest, "config": described, "layers": layers}).encode())
    names = {"io.containerd.image.name": options.name, "org.opencontainers.image.ref.name": options.name.rsplit(":", 1)[1]}
    index = {"schemaVersion": 2, "manifests": [{**manifest, "platform": machine, "annotations": names}]}
    layout = {
        "oci-layout": (0o644, b'{"imageLayoutVersion":"1.0.0"}'),
        "index.json": (0o644, json.dumps(index).encode()),
        **blobs,
    }
    with open(options.out, "wb") as out:
        out.write(archive(layout))


main()
