"""Near copies by others, each in a process of its own: which documents of a file they remove, and their CPU seconds.

    python near_peers.py NAME TEXTS.jsonl LANGUAGE FOLDER

Nothing of ours is imported, so that the interpreter may be of another environment. Prints one line of JSON.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

WORDS = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")


def read(path: Path) -> list[str]:
    """The documents of a file."""
    return [json.loads(line)["text"] for line in path.open(encoding="utf-8")]


def run_datasketch(path: Path, language: str, folder: Path) -> dict:
    """MinHash of 128 permutations and MinHashLSH at 0.8: a document that matches one that was kept is removed."""
    from datasketch import MinHash, MinHashLSH

    texts = read(path)
    started = time.process_time()
    index = MinHashLSH(threshold=0.8, num_perm=128)
    removed = []
    for number, text in enumerate(texts):
        words = WORDS.findall(text.lower())
        sketch = MinHash(num_perm=128)
        grams = {" ".join(words[start : start + 5]) for start in range(max(len(words) - 4, 1))}
        sketch.update_batch([gram.encode() for gram in grams])
        if index.query(sketch):
            removed.append(number)
        else:
            index.insert(number, sketch)
    return {"removed": removed, "seconds": time.process_time() - started}


def run_datatrove(path: Path, language: str, folder: Path) -> dict:
    """Its four steps with its own defaults, 14 buckets of 8 hashes; seconds without imports and word tokenizers."""
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = MinhashConfig()
    signatures, buckets, clusters, out = (str(folder / name) for name in ("sig", "buckets", "clusters", "out"))
    step = MinhashDedupSignature(signatures, config, language={"en": "eng", "zh": "cmn"}[language])
    step.get_shingles("some words to load whatever counts words, 再来几个字")
    started = time.process_time()

    def documents():
        return JsonlReader(str(path.parent), glob_pattern=path.name, id_key="id").run()

    step.run(documents())
    finder = MinhashDedupBuckets(signatures, buckets, config=config)
    for bucket in range(config.num_buckets):
        finder.run(None, bucket, config.num_buckets)
    MinhashDedupCluster(buckets, clusters, config).run()
    writer = JsonlWriter(out, compression=None)
    with writer:
        for document in MinhashDedupFilter(clusters).run(documents()):
            writer.write(document)
    seconds = time.process_time() - started
    kept = {int(json.loads(line)["id"]) for file in Path(out).iterdir() for line in file.open(encoding="utf-8")}
    return {"removed": [number for number in range(len(read(path))) if number not in kept], "seconds": seconds}


PEERS = {"datasketch": run_datasketch, "datatrove": run_datatrove}

if __name__ == "__main__":
    printed = os.dup(1)
    os.dup2(2, 1)  # what they say on the way is no result
    found = PEERS[sys.argv[1]](Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    os.write(printed, (json.dumps(found) + "\n").encode())
