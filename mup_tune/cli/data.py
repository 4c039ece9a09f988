"""``data prepare``: text or Megatron pairs in, a corpus out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mup_tune.cli.options import JsonOption
from mup_tune.cli.output import console, err_console, print_json, print_rows, say

data = typer.Typer(no_args_is_help=True, help="Prepare text for training, and verify what was prepared.")


@data.command("prepare")
def prepare(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT…",
            help="Text, JSON Lines (both also .gz, .zst), Parquet, folders of them, or Megatron pairs.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Corpus folder to write.")],
    tokenizer: Annotated[
        str | None, typer.Option(metavar="bytes|FILE", help="bytes, or a Hugging Face tokenizer.json.")
    ] = None,
    eod: Annotated[
        str | None,
        typer.Option(metavar="TOKEN|ID", help="End-of-document token, if not a usual one; its id with --vocab-size."),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(metavar="N", help="Instead of --tokenizer, for Megatron pairs.")
    ] = None,
    val_fraction: Annotated[float, typer.Option(help="Share of tokens held out for validation.")] = 0.01,
    json: JsonOption = False,
) -> None:
    """Tokenize text, or adopt Megatron .bin/.idx pairs as they lie, and split off documents for validation.

    One text file is one document, and so is the `text` of one line of JSON Lines or one row of Parquet.
    Compressed files (x.txt.gz, x.jsonl.zst) are read as they are. JSON Lines are told by their name (.jsonl,
    .ndjson) or by their first two lines, and what could be either is refused. Hidden, binary and empty
    files are skipped and counted.

    Documents are held out by a hash of their content. Where that misses --val-fraction by more than a
    quarter, the bound moves, and a document too long for either side is cut.

    A written-out end-of-document token is plain text. Characters that the vocabulary lacks are counted, and
    more than 1 % of them are refused.
    """
    from mup_tune.data.prepare import prepare as make

    with _bytes_read() as report:
        corpus = make(inputs, out, tokenizer, val_fraction, eod=eod, vocab_size=vocab_size, report=report)
    manifest = corpus.manifest
    if json:
        print_json({"path": str(corpus.path), **manifest.model_dump(mode="json")})
        return
    print_rows(
        [
            {
                "split": split,
                "documents": corpus.documents(split),
                "tokens": corpus.tokens(split),
                "bytes/token": corpus.bytes_per_token(split),
            }
            for split in ("train", "val")
        ],
        f"{corpus.path}",
        f"vocabulary {corpus.vocab_size}, EOD {corpus.eod}, hash {corpus.hash}",
    )
    for reason, count in manifest.skipped.items():
        console.print(f"skipped, {reason}: {count}", highlight=False)
    for count, note in (
        (manifest.without_eod, f"documents do not end in EOD {corpus.eod}, so their end is not predicted"),
        (manifest.eods_inside, f"times EOD {corpus.eod} stands inside a document, which goes on after it"),
        (manifest.lost_characters, "characters are in no token of the vocabulary, so bits/byte is too low"),
        (manifest.cut_documents, "documents are cut, and their end is held out for validation"),
    ):
        if count:
            console.print(f"note: {count} {note}", highlight=False)


@data.command("verify")
def verify(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="A prepared corpus.")], json: JsonOption = False
) -> None:
    """Read all of a corpus and compare it with what was recorded when it was prepared.

    Exit code 0: every byte is right, as far as it was recorded. 2: the first file that is not is named. Every
    use of a corpus looks at samples of its files alone. An adopted .bin is compared by its documents' tokens.
    Files of a whole corpus that were copied or touched are trusted from then on.
    """
    from mup_tune.data.verify import verify as check

    with _bytes_read() as report:
        found = check(corpus, report)
    if json:
        facts = {"files": found.files, "adopted_documents": found.documents, "unrecorded": found.unrecorded}
        print_json({"path": str(corpus), "hash": found.corpus.hash, **facts})
        return
    say(f"{corpus} is whole: {len(found.files)} files by every byte, {found.documents} adopted documents by tokens")
    if found.unrecorded:
        say(f"note: of {', '.join(found.unrecorded)} no digest was recorded: their form and ids are checked")


@contextmanager
def _bytes_read() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, told of bytes done and of all there are."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err_console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def register(app: typer.Typer) -> None:
    app.add_typer(data, name="data")
