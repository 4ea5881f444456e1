"""`python -m minisl.data prepare SOURCE... --out DIR`: tokenise once, train many times."""

import sys
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from minisl.command import Parser, run_command
from minisl.data.files import ENDINGS
from minisl.data.shards import SHARD_TOKENS, Prepared, prepare
from minisl.data.sources import HELD_OUT
from minisl.errors import InputError


def main(argv):
    parser = Parser(prog="python -m minisl.data", description="Token shards: write them, check them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="prepare | check")
    p = commands.add_parser("prepare", help="tokenise documents into a folder of shards, for --data DIR")
    p.add_argument("sources", nargs="+", help=f"what --data takes: files or globs of documents ({', '.join(ENDINGS)}), "
                                              "c4, hf:NAME, hf:NAME:CONFIG, text files and folders, python-docs, python-source")
    p.add_argument("--out", required=True, help="the new folder")
    p.add_argument("--tokenizer", default="bpe", help="bytes, bpe (trained on the first documents), or a tokenizer.json")
    p.add_argument("--vocab-size", type=int, default=32000, help="how many ids it may have")
    p.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens from which on a new shard begins")
    p.add_argument("--workers", type=int, default=0, help="processes that tokenise; 0 does it in this one, on all cores")
    p.add_argument("--validation-documents", type=int, help=f"documents of a stream to hold out (left out: {HELD_OUT:,})")
    p.add_argument("--text-field", default="text", help="the field or column that holds the text")
    c = commands.add_parser("check", help="compare all SHA-256 of a folder of shards")
    c.add_argument("folder")
    args = parser.parse_args(argv)
    if args.command == "check":
        prepared = Prepared(Path(args.folder))
        prepared.check()
        print(f"{args.folder}: {len(prepared):,} tokens in {prepared.files}, all as written")
        return
    for name, least in (("vocab_size", 1), ("shard_tokens", 1), ("workers", 0), ("validation_documents", 1)):
        value = getattr(args, name)
        if value is not None and not least <= value < 2**31:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least} and below {2**31}")
    notes = []
    with closing(tqdm(unit="token", unit_scale=True, dynamic_ncols=True, leave=False, disable=None)) as bar:
        index = prepare(args.sources, args.out, args.tokenizer, args.vocab_size, args.shard_tokens, args.workers,
                        args.validation_documents, args.text_field, bar.update, notes)
    for line in notes:
        print(line, file=sys.stderr)
    print(f"{args.out}: {index['tokens']:,} tokens of {index['documents']:,} documents in {len(index['shards'])} shards, "
          f"{index['validation_documents']:,} held out; train with --data {args.out} --vocab-size {index['vocab_size']}")


if __name__ == "__main__":
    sys.exit(run_command(main))
