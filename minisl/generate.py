"""`python -m minisl.generate RUN --prompt TEXT`: let a trained model write."""

import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from minisl import checkpoint, kernels
from minisl.autograd import no_grad, ops
from minisl.backend import DEVICES, choose_device, generator, to_numpy
from minisl.command import Parser, run_command
from minisl.data.files import first_bytes, foreign
from minisl.errors import InputError
from minisl.metrics import gpu_memory, peak_memory
from minisl.nn import KVCache, PackedCache
from minisl.swap import merge


def generate(model, ids, count, rng, temperature=0.8, top_k=0, stop=None, top_p=1.0):
    """Yield up to `count` new ids that continue the list `ids` (not empty), ending early at the id `stop`.

    temperature 0 takes the likeliest id; else the draw is among the top_k likeliest (0: all), and of those among the fewest that
    hold top_p of the probability. The model sees at most `max_position_embeddings` ids: when they are full, it goes on from the
    later half.
    """
    sequence = Sequence(ids, rng)
    for _ in range(count):
        go_on(model, [sequence], temperature, top_k, top_p)
        if sequence.ids[-1] == stop:
            return
        yield sequence.ids[-1]


class Sequence:
    """Ids so far, the random stream that draws the next ones, and what the model remembers of them."""

    def __init__(self, ids, rng):
        self.ids, self.rng, self.cache = list(ids), rng, None

    def unseen(self, config):
        """The ids that the cache lacks; a new one is begun where there is none, or no room in it."""
        limit = config.max_position_embeddings
        if self.cache is not None and self.cache.length < limit:
            return self.ids[-1:]
        self.cache = KVCache(config.num_hidden_layers)
        return self.ids[-max(1, limit // 2):] if len(self.ids) > limit else self.ids[:]


def go_on(model, sequences, temperature=0.8, top_k=0, top_p=1.0):
    """Append one id to each sequence, all in one pass of the model: it reads the weights once, however many there are.

    A sequence gets what it would get alone, as far as sums rounded in another order allow. Returns how many ids were read.
    """
    unseen = [sequence.unseen(model.config) for sequence in sequences]
    counts, caches = [len(ids) for ids in unseen], [sequence.cache for sequence in sequences]
    with no_grad():
        hidden = model.model(np.concatenate(unseen)[None], caches[0] if len(caches) == 1 else PackedCache(caches, counts))
        logits = to_numpy(ops.linear(hidden[:, (np.cumsum(counts) - 1).tolist()], model.head).data[0])
    if not np.isfinite(logits).all():
        raise InputError("the model's logits are not numbers, there is nothing to draw from")
    for sequence, row in zip(sequences, logits):
        sequence.ids.append(draw(row.astype(np.float64), sequence.rng, temperature, top_k, top_p))
    return sum(counts)


def draw(logits, rng, temperature, top_k=0, top_p=1.0):
    """An id from softmax(logits / temperature), of the top_k largest (0: all), of the fewest of these that hold top_p."""
    if temperature == 0:
        return int(logits.argmax())
    if 0 < top_k < len(logits):
        logits = logits.copy()
        logits[np.argsort(-logits, kind="stable")[top_k:]] = -np.inf
    with np.errstate(over="ignore"):  # a temperature near 0 makes them -inf
        p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        p[order[1 + np.searchsorted(np.cumsum(p[order]), top_p):]] = 0  # all after the first with which the sum reaches top_p
        p /= p.sum()
    return int(rng.choice(len(p), p=p))


class Text:
    """The text of ids that come one by one, in pieces: together exactly what `decode` makes of all of them.

    before: ids of a text that it continues: how a token is spelled may depend on whether there is one before it. What the next
    id may change is held back: a character that is not complete, and of tokens like <0xE6> all that stand together, since one
    wrong byte spoils the others. Where a tokenizer has no `anchor`, all is.
    """

    def __init__(self, tokenizer, before=()):
        self.tokenizer, self.open = tokenizer, False
        self._keep(list(before))

    def _keep(self, ids):
        """Begin anew with these ids, all of them said, or with the anchor in their place."""
        self.ids, self.said = ids, len(self.tokenizer.decode(ids))
        if self.said and self.tokenizer.anchor is not None:
            self.ids = [self.tokenizer.anchor]
            self.said = len(self.tokenizer.decode(self.ids))

    def add(self, token):
        """What can be said now that could not before."""
        self.ids.append(token)
        if not self.tokenizer.is_silent(token):
            self.open = self.tokenizer.is_byte(token)
        text = "" if self.open or self.tokenizer.anchor is None else self.tokenizer.decode(self.ids)
        if not text or text.endswith("\ufffd"):  # perhaps a character that is not complete
            return ""
        piece = text[self.said:]
        self._keep(self.ids)
        return piece

    def rest(self):
        """What was held back, once no more comes."""
        return self.tokenizer.decode(self.ids)[self.said:]


class Until:
    """Text that ends before the first of the stop strings, wherever its pieces begin and end.

    The first is the one that is complete first; of two that end together, the longer one.
    """

    def __init__(self, stops):
        self.stops, self.held, self.done = stops, "", False

    def add(self, piece):
        """What can be said now: all but an end that a stop string may begin with."""
        text = self.held + piece
        found = [(i + len(stop), i) for stop in self.stops if (i := text.find(stop)) >= 0]
        if found:
            self.done, self.held = True, ""
            return text[:min(found)[1]]
        keep = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self.held = text[len(text) - keep:]
        return text[:len(text) - keep]

    def rest(self):
        """What was held back, once no more comes."""
        rest, self.held = self.held, ""
        return rest


@dataclass
class Speed:
    """What writing took. The pass that reads the prompts also gives each its first new id; the others give one each."""

    read_ids: int = 0
    read_seconds: float = 0.0
    new_ids: int = 0
    new_seconds: float = 0.0
    cache_bytes: int = 0

    def add(self, first, read, new, seconds, cache_bytes):
        if first:
            self.read_ids, self.read_seconds = self.read_ids + read, self.read_seconds + seconds
        else:
            self.new_ids, self.new_seconds = self.new_ids + new, self.new_seconds + seconds
        self.cache_bytes = max(self.cache_bytes, cache_bytes)


def stream(model, tokenizer, prompts, tokens=200, *, seed=0, temperature=0.8, top_k=0, top_p=1.0, stop=(), together=32,
           speed=None):
    """Yield (i, piece): what the model writes after prompts[i], piece by piece, in pieces of whole characters.

    Each prompt has a random stream of its own, a function of the seed alone: its text does not depend on the others. Up to
    `together` are written at a time. A text ends after `tokens` ids, at the end mark, or before the first of the strings `stop`.
    speed: a `Speed` to fill. Raises InputError for a value that cannot be, logits that are not numbers.
    """
    check_texts("prompts", prompts)
    check(tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, together=together, stop=stop)
    for begin in range(0, len(prompts), together):
        going = {}
        for i in range(begin, min(begin + together, len(prompts))):
            ids = [tokenizer.end, *tokenizer.encode(prompts[i])]
            going[i] = Sequence(ids, generator(seed, "sample")), Text(tokenizer, ids), Until(stop)
        for count in range(tokens):
            started, sequences = time.perf_counter(), [sequence for sequence, _, _ in going.values()]
            read = go_on(model, sequences, temperature, top_k, top_p)
            if speed:
                speed.add(count == 0, read, len(sequences), time.perf_counter() - started, sum(s.cache.nbytes for s in sequences))
            for i, (sequence, text, until) in list(going.items()):
                last = sequence.ids[-1] == tokenizer.end or count == tokens - 1
                piece = until.add(text.add(sequence.ids[-1])) if sequence.ids[-1] != tokenizer.end else ""
                if last and not until.done:
                    piece += until.add(text.rest())
                    piece += until.rest()
                if last or until.done:
                    del going[i]
                if piece:
                    yield i, piece
            if not going:
                break


def complete(model, tokenizer, prompts, tokens=200, **options):
    """The whole texts that follow the prompts; options as in `stream`."""
    check_texts("prompts", prompts)
    texts = [""] * len(prompts)
    for i, piece in stream(model, tokenizer, prompts, tokens, **options):
        texts[i] += piece
    return texts


def check(**given):
    """Raises InputError for the first value that cannot be."""
    for name, low, kind in (("tokens", 1, Integral), ("top_k", 0, Integral), ("seed", 0, Integral), ("temperature", 0, Real),
                            ("together", 1, Integral)):
        if not isinstance(given[name], kind) or not low <= given[name] < float("inf"):
            words = "an integer" if kind is Integral else "a finite number"
            raise InputError(f"--{name.replace('_', '-')} {given[name]}: must be {words}, at least {low}")
    if not isinstance(given["top_p"], Real) or not 0 < given["top_p"] <= 1:
        raise InputError(f"--top-p {given['top_p']}: must be above 0 and at most 1")
    check_texts("--stop", given["stop"])
    if not all(given["stop"]):
        raise InputError("--stop: each stop string needs at least one character")


def check_texts(name, texts):
    """Raises InputError unless this is a list of strings: one alone would be taken for a list of its characters."""
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} {texts!r}: must be a list of strings")


def read_prompts(path):
    """The lines of a UTF-8 file that are not empty."""
    try:
        lines = [line.removesuffix("\r") for line in Path(path).read_text("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        why = foreign(first_bytes(path)) or f"byte {error.start}"
        raise InputError(f"--prompts {path}: not UTF-8 text ({why})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"--prompts {path}: {getattr(error, 'strerror', None) or error}") from None
    if not any(lines):
        raise InputError(f"--prompts {path}: no prompt in it; expected one per line")
    return [line for line in lines if line]


def shown(text):
    """Text for a terminal: control characters, which could move its cursor or change its colours, as \\x1b and the like."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else f"\\x{ord(c):02x}" for c in text)


class Printer:
    """Prints the text of one prompt as it comes, and of several one after the other, each under a line with its number; texts
    that are written together are complete together."""

    def __init__(self, prompts, together):
        self.prompts, self.together, self.now, self.waiting = prompts, together, 0, {}
        self.begin()

    def begin(self):
        if len(self.prompts) > 1:
            print(f"--- {self.now + 1} of {len(self.prompts)}")
        print(shown(self.prompts[self.now]), end="", flush=True)

    def add(self, i, piece):
        self.up_to(i // self.together * self.together)
        if i == self.now:
            print(shown(piece), end="", flush=True)
        else:
            self.waiting[i] = self.waiting.get(i, "") + piece

    def up_to(self, i):
        """Nothing more comes for the prompts before i."""
        while self.now < i:
            print()
            self.now += 1
            if self.now < len(self.prompts):
                self.begin()
                print(shown(self.waiting.pop(self.now, "")), end="", flush=True)


def load(run, device, merged):
    """(model, tokenizer, xp), the layers merged into dense ones if asked for."""
    xp, _ = choose_device(device)
    found = checkpoint.find(run)
    model, tokenizer = found.model().to(xp), found.tokenizer()
    with suppress(OSError):  # reading the file took more memory than all that follows; Linux can forget a peak
        Path("/proc/self/clear_refs").write_text("5")
    return merge(model) if merged else model, tokenizer, xp


def bytes_of(model):
    """Of weights and of what belongs to them, such as a support's indices."""
    modules = [module for _, module in model.named_modules()]
    return (sum(p.data.nbytes for p in model.parameters())
            + sum(getattr(module, name).nbytes for module in modules for name in module.buffers))


def measured(model, xp, merged, speed):
    """A row of numbers: what generation in this way took."""
    return {"weights": "merged" if merged else "as trained", "read_ids": speed.read_ids, "new_ids": speed.new_ids,
            "read": speed.read_ids / max(speed.read_seconds, 1e-9),
            "write": speed.new_ids / speed.new_seconds if speed.new_ids else 0.0,
            "weight_bytes": bytes_of(model), "cache_bytes": speed.cache_bytes,
            "peak_bytes": peak_memory() if xp is np else gpu_memory(xp)}


def way(run, device, merged, prompts, options):
    """(texts, row) of one way, in a process of its own: memory that was used once would count for the next way too. The best of
    three times."""
    with kernels.running("auto"):
        model, tokenizer, xp = load(run, device, merged)
        warm_up(model, tokenizer)
        rows = []
        for _ in range(3):
            speed = Speed()
            texts = complete(model, tokenizer, prompts, speed=speed, **options)
            rows.append(measured(model, xp, merged, speed))
        return texts, rows[-1] | {name: max(row[name] for row in rows) for name in ("read", "write")}


def warm_up(model, tokenizer):
    """Kernels are compiled and views of the supports built before anything is timed."""
    for length in (16, 1):
        with no_grad():
            model(np.full((1, length), tokenizer.end), KVCache(model.config.num_hidden_layers))


def megabytes(n):
    """Bytes in words."""
    return "not known" if n is None else f"{n / 1e6:,.1f} MB"


def sentence(row):
    """A row of `--compare` in words."""
    return (f"{row['weights']}: {row['read_ids']:,} ids read at {row['read']:,.0f} a second, {row['new_ids']:,} written at "
            f"{row['write']:,.1f} a second; weights {megabytes(row['weight_bytes'])}, cache {megabytes(row['cache_bytes'])}, "
            f"peak {megabytes(row['peak_bytes'])}")


def compare(run, device, prompts, options):
    """Print the numbers of both ways, and whether they wrote the same."""
    texts, rows = [], []
    for merged in (False, True):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            text, row = pool.submit(way, run, device, merged, prompts, options).result()
        texts.append(text)
        rows.append(row)
    print("| weights | read, ids/s | write, ids/s | weights, MB | cache, MB | peak, MB |\n|---|---|---|---|---|---|")
    for row in rows:
        sizes = (megabytes(row[k]).removesuffix(" MB") for k in ("weight_bytes", "cache_bytes", "peak_bytes"))
        print(f"| {row['weights']} | {row['read']:,.0f} | {row['write']:,.1f} | {' | '.join(sizes)} |")
    same = sum(a == b for a, b in zip(*texts))
    print(f"{len(prompts)} prompts, {rows[0]['read_ids']:,} ids read, {rows[0]['new_ids']:,} and {rows[1]['new_ids']:,} written; "
          f"the same text for {same} of {len(prompts)}")


def parse(argv):
    """(arguments, prompts)"""
    parser = Parser(prog="python -m minisl.generate", description="Continue prompts with a trained model.")
    parser.add_argument("run", help="a folder that minisl.train wrote")
    parser.add_argument("--prompt", action="append", help="text to continue; give it again for more (left out: a new document)")
    parser.add_argument("--prompts", metavar="FILE", help="a file with more of them, one per line")
    parser.add_argument("--tokens", type=int, default=200, help="how many at the most, for each prompt")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the likeliest token")
    parser.add_argument("--top-k", type=int, default=0, help="draw among the k likeliest; 0 among all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw among the fewest that hold this probability")
    parser.add_argument("--stop", nargs="+", action="extend", metavar="TEXT", help="end before the first of these texts")
    parser.add_argument("--seed", type=int, default=0, help="of the draws; a prompt's text does not depend on the others")
    parser.add_argument("--together", type=int, default=32, help="prompts at a time")
    parser.add_argument("--merge", action="store_true", help="multiply B A + S out into dense matrices first")
    parser.add_argument("--compare", action="store_true", help="no text: speed and memory with and without --merge")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where to run")
    args = parser.parse_args(argv)
    args.stop = args.stop or []
    for flag, texts in (("--prompt", args.prompt or []), ("--stop", args.stop)):
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise InputError(f"{flag}: not UTF-8 text") from None
    check(**{name: getattr(args, name) for name in ("tokens", "temperature", "top_k", "top_p", "seed", "together", "stop")})
    if args.merge and args.compare:
        raise InputError("--merge: --compare measures both; give one of the two")
    prompts = [*(args.prompt or []), *(read_prompts(args.prompts) if args.prompts is not None else [])]
    return args, prompts or [""]


def main(argv):
    args, prompts = parse(argv)
    options = {name: getattr(args, name) for name in ("tokens", "seed", "temperature", "top_k", "top_p", "stop", "together")}
    if args.compare:
        checkpoint.load_model(args.run)  # what is wrong with it is said here, not in a process that is started
        return compare(args.run, args.device, prompts, options)
    with kernels.running("auto"):
        model, tokenizer, xp = load(args.run, args.device, args.merge)
        warn_of_long(model.config, tokenizer, prompts)
        warm_up(model, tokenizer)
        speed, printer = Speed(), Printer(prompts, args.together)
        for i, piece in stream(model, tokenizer, prompts, speed=speed, **options):
            printer.add(i, piece)
        printer.up_to(len(prompts))
        print(sentence(measured(model, xp, args.merge, speed)), file=sys.stderr)


def warn_of_long(config, tokenizer, prompts):
    """Say on stderr which prompts are longer than the model sees."""
    limit = config.max_position_embeddings
    for i, prompt in enumerate(prompts):
        if (length := 1 + len(tokenizer.encode(prompt))) > limit:
            print(f"prompt {i + 1}: {length} ids, this model sees {limit}: it goes on from the last {max(1, limit // 2)}",
                  file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main))
