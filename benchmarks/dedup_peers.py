"""One side of `dedup.py`, run by the peer's own Python, the way that peer's documentation says.

    PYTHON dedup_peers.py datatrove|text-dedup FOLDER OUT WORKERS

Finds near-duplicates in FOLDER/rows.jsonl (datatrove, which shares work by file: in FOLDER/parts, the same rows in
WORKERS files), writes the rows it keeps in its own format and then, outside the timing, their ids to OUT/kept.txt.
Imports aren't timed either.

Both sign word 5-grams of the words as they stand (the file holds plain lower-case words; datatrove's number folding is
off, and its tokeniser splits at spaces instead of running spaCy) and read any two rows that share a band as duplicates.
- datatrove: its four stages (signatures, buckets, clusters, filter) with its documented 14 bands of 8 for 0.72, xxhash,
  forked workers, and larger read buffers than by default.
- text-dedup: 128 permutations, bands chosen by itself for 0.72, and the faster of its hash settings (xxh3, 32 bits).
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path

THRESHOLD = 0.72
PERMUTATIONS = 128


def datatrove(folder: Path, out: Path, workers: int) -> tuple[float, list[str]]:
    """Seconds, and ids kept."""
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Spaces(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split(" ")

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    config = MinhashConfig(
        n_grams=5, num_buckets=14, hashes_per_bucket=8, norm_config=TextNormConfig(norm_numbers=False)
    )
    reader = JsonlReader(str(folder / "parts"), glob_pattern="*.jsonl")
    buffered = {"lines_to_buffer": 10_000}
    stages = [
        ([reader, MinhashDedupSignature(str(out / "signatures"), config=config, language=Spaces())], workers),
        ([MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=config, **buffered)], 14),
        ([MinhashDedupCluster(str(out / "buckets"), str(out / "remove"), config=config, **buffered)], 1),
        (
            [
                reader,
                MinhashDedupFilter(str(out / "remove"), **buffered),
                JsonlWriter(str(out / "kept"), output_filename="${rank}.jsonl", compression=None),
            ],
            workers,
        ),
    ]
    began = time.perf_counter()
    for k, (pipeline, tasks) in enumerate(stages):
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=min(tasks, workers), logging_dir=str(out / f"log{k}"), start_method="fork"
        ).run()
    seconds = time.perf_counter() - began
    lines = [line for path in sorted((out / "kept").glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return seconds, [json.loads(line)["id"] for line in lines]


def text_dedup(folder: Path, out: Path, workers: int) -> tuple[float, list[str]]:
    """Seconds, and ids kept."""
    from datasets import load_from_disk
    from text_dedup import minhash

    arguments = {
        "--path": "json", "--data_files": folder / "rows.jsonl", "--split": "train", "--cache_dir": out / "cache",
        "--output": out / "kept", "--column": "text", "--ngram": 5, "--min_length": 5, "--num_perm": PERMUTATIONS,
        "--threshold": THRESHOLD, "--hash_func": "xxh3", "--hash_bits": 32, "--num_proc": workers,
    }  # fmt: skip
    began = time.perf_counter()
    minhash.main([str(x) for pair in arguments.items() for x in pair], standalone_mode=False)
    seconds = time.perf_counter() - began
    return seconds, load_from_disk(str(out / "kept"))["id"][:]


def main() -> None:
    name, folder, out, workers = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    run = {"datatrove": datatrove, "text-dedup": text_dedup}[name]
    seconds, kept = run(folder, out, workers)
    (out / "kept.txt").write_text("\n".join(kept))
    print(json.dumps({"seconds": seconds, "version": importlib.metadata.version(name)}))


if __name__ == "__main__":
    main()
