"""How much faster ``data prepare`` is on all allowed cores than on one.

    python benchmarks/prepare_cores.py --megabytes 8 --rounds 5

The text is Python's standard library. The tokenizer is a byte-level BPE that is trained on a part of it.
Sides run in turn, each in a process of its own that is pinned to its cores. Both must write the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SIDE = """
import os, sys, time
from pathlib import Path
os.sched_setaffinity(0, set(map(int, sys.argv[1].split(","))))
from mup_tune.data.prepare import prepare
start = time.perf_counter()
prepare([Path(sys.argv[2])], Path(sys.argv[3]), tokenizer=sys.argv[4])
print(time.perf_counter() - start)
"""


def texts(megabytes: float, at_least: int) -> list[str]:
    """Source files laid together to documents of ``at_least`` characters."""
    found, document, size = [], "", 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        document += path.read_text(encoding="utf-8", errors="replace")
        if len(document) < at_least:
            continue
        found.append(document)
        size, document = size + len(document), ""
        if size > megabytes * 1e6:
            return found
    return [*found, document]


def train(documents: list[str], path: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.save(str(path))


def measure(megabytes: float, at_least: int, rounds: int, vocab_size: int = 8192) -> list[float]:
    """Seconds on one core over seconds on all, of each round."""
    cores = sorted(os.sched_getaffinity(0))
    sides = {"one": str(cores[0]), "all": ",".join(map(str, cores))}
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = texts(megabytes, at_least)
        train(documents[: 1 + len(documents) // 8], folder / "tokenizer.json", vocab_size)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (folder / "text.jsonl").write_text(lines, encoding="utf-8")
        for number in range(rounds):
            seconds = {}
            for side, allowed in sides.items():
                inputs = [allowed, folder / "text.jsonl", folder / f"{side}-{number}", folder / "tokenizer.json"]
                command = [sys.executable, "-c", SIDE, *map(str, inputs)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds[side] = float(done.stdout)
            one, whole = ((folder / f"{side}-{number}" / "tokens.bin").read_bytes() for side in sides)
            if one != whole:
                raise SystemExit("one core and all cores wrote different tokens")
            ratios.append(seconds["one"] / seconds["all"])
            print(f"one core {seconds['one']:.2f} s, {len(cores)} cores {seconds['all']:.2f} s: {ratios[-1]:.2f} ×")
    return ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=8.0)
    parser.add_argument("--document-chars", type=int, default=1, help="the least size of a document")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found = measure(args.megabytes, args.document_chars, args.rounds)
    print(f"median {statistics.median(found):.2f} × over {len(found)} rounds")
