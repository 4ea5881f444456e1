"""`python -m minisl.generate RUN --prompt TEXT`: let a trained model write."""

import sys

import numpy as np

from minisl import checkpoint
from minisl.autograd import no_grad
from minisl.backend import DEVICES, choose_device, generator, to_numpy
from minisl.command import Parser, run_command
from minisl.errors import InputError
from minisl.nn import KVCache


def generate(model, ids, count, rng, temperature=0.8, top_k=0, stop=None):
    """Yield up to `count` new ids that continue the list `ids` (not empty), ending early at the id `stop`.

    temperature 0 takes the likeliest id; top_k > 0 draws among the k likeliest. The model sees at most
    `max_position_embeddings` ids: when they are full, it goes on from the later half.
    """
    limit = model.config.max_position_embeddings
    ids, cache, fresh = list(ids), None, None
    with no_grad():
        for _ in range(count):
            if cache is None or cache.length + len(fresh) > limit:
                fresh, cache = ids[-max(1, limit // 2):] if len(ids) > limit else ids[:], KVCache(model.config.num_hidden_layers)
            logits = to_numpy(model(np.array([fresh]), cache).data[0, -1])
            if not np.isfinite(logits).all():
                raise InputError("the model's logits are not numbers, there is nothing to draw from")
            ids.append(draw(logits.astype(np.float64), rng, temperature, top_k))
            if ids[-1] == stop:
                return
            yield ids[-1]
            fresh = ids[-1:]


def draw(logits, rng, temperature, top_k):
    """An id from softmax(logits / temperature), restricted to the top_k largest if that is above 0."""
    if temperature == 0:
        return int(logits.argmax())
    if 0 < top_k < len(logits):
        logits = np.where(logits >= np.partition(logits, -top_k)[-top_k], logits, -np.inf)
    with np.errstate(over="ignore"):  # a temperature near 0 makes them -inf
        p = np.exp((logits - logits.max()) / temperature)
    return int(rng.choice(len(p), p=p / p.sum()))


def main(argv):
    parser = Parser(prog="python -m minisl.generate", description="Continue a prompt with a trained model.")
    parser.add_argument("run", help="a folder that minisl.train wrote")
    parser.add_argument("--prompt", default="", help="text to continue; empty starts a new document")
    parser.add_argument("--tokens", type=int, default=200, help="how many at the most")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the likeliest token")
    parser.add_argument("--top-k", type=int, default=0, help="draw among the k likeliest; 0 among all")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where to run")
    args = parser.parse_args(argv)
    for name, low in (("tokens", 1), ("top_k", 0), ("seed", 0), ("temperature", 0)):
        if not low <= getattr(args, name) < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be a finite number, at least {low}")
    try:
        args.prompt.encode()
    except UnicodeEncodeError:
        raise InputError("--prompt: not UTF-8 text") from None

    xp, _ = choose_device(args.device)
    found = checkpoint.find(args.run)
    model, tokenizer = found.model().to(xp), found.tokenizer()
    ids = [tokenizer.end, *tokenizer.encode(args.prompt)]
    new = []
    print(args.prompt, end="", flush=True)
    for token in generate(model, ids, args.tokens, generator(args.seed, "sample"), args.temperature, args.top_k, tokenizer.end):
        before = tokenizer.decode(new).rstrip("\ufffd")  # a character may take several tokens
        new.append(token)
        print(tokenizer.decode(new).rstrip("\ufffd")[len(before):], end="", flush=True)
    print()


if __name__ == "__main__":
    sys.exit(run_command(main))
