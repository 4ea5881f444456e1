"""Text from a model: each prompt of a batch as if it were alone, the draws, stop strings, whole characters, merged layers."""

import subprocess
import sys
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
from mutation import mutant_tests
from test_train import ROOT, run_job
from tokenizer_cases import AT_THE_END, CASES, case

from minisl import checkpoint, generate, no_grad, plot, swap
from minisl.autograd import Tensor
from minisl.backend import generator
from minisl.command import run_command
from minisl.data import make_tokenizer, tokenizers
from minisl.errors import InputError
from minisl.generate import Sequence, Speed, Text, Until, complete, draw, go_on, read_prompts, shown, stream
from minisl.nn import KVCache, LlamaConfig, PackedCache, llama

CONFIG = LlamaConfig(16, 24, 2, 4, 2, vocab_size=257, max_position_embeddings=12)
TOKENIZER = make_tokenizer("bytes", [], 257)
PROMPTS = ["", "a", "Return the", "é€𝄞, of several bytes", "x" * 11, "more than the model can see", "a"]


def trained(dtype="float64", scale=0.5):
    """A model of 4 x 6 factors whose weights are all away from their start."""
    model = swap.method("sltrain", rank=4, delta=0.1, alpha=16).build(CONFIG, np.random.default_rng(0), dtype)
    for i, p in enumerate(model.parameters()):
        p.data = p.data + scale * np.random.default_rng(i).standard_normal(p.shape).astype(dtype)
    return model


def slowly(model, prompt, tokens, seed, **options):
    """The text by its definition: no cache, no batch; the later half once the model is full. temperature 0.8."""
    ids, rng, text = [TOKENIZER.end, *TOKENIZER.encode(prompt)], generator(seed, "sample"), []
    start = max(0, len(ids) - CONFIG.max_position_embeddings // 2) if len(ids) > CONFIG.max_position_embeddings else 0
    for _ in range(tokens):
        if len(ids) - start > CONFIG.max_position_embeddings:
            start = len(ids) - CONFIG.max_position_embeddings // 2
        with no_grad():
            logits = model(np.array([ids[start:]])).data[0, -1].astype(float)
        ids.append(draw(logits, rng, 0.8, **options))
        if ids[-1] == TOKENIZER.end:
            break
        text.append(ids[-1])
    return TOKENIZER.decode(text)


def check_batch_equals_alone():
    """Ragged prompts, some of which slide in the middle, one of which is in there twice; in two sizes of batches."""
    model = trained()
    options = {"temperature": 0.8, "seed": 3}
    alone = [complete(model, TOKENIZER, [prompt], 15, **options)[0] for prompt in PROMPTS]
    assert complete(model, TOKENIZER, PROMPTS, 15, **options) == alone
    assert complete(model, TOKENIZER, PROMPTS, 15, together=3, **options) == alone
    assert len({*alone}) == len(PROMPTS) - 1  # the same prompt and seed: the same text
    assert complete(model, TOKENIZER, PROMPTS, 15, seed=4) != alone


def check_alone_equals_definition():
    model = trained()
    for prompt in PROMPTS:
        assert complete(model, TOKENIZER, [prompt], 15, seed=3) == [slowly(model, prompt, 15, 3)]


def check_packed_logits():
    """One pass over several sequences of other lengths: the logits of each alone, at its own positions."""
    model, rng = trained(), np.random.default_rng(5)
    rows = [rng.integers(0, 257, n) for n in (5, 1, 9)]
    caches, got = [KVCache(2) for _ in rows], [[] for _ in rows]
    with no_grad():
        for pieces in ((2, 1, 4), (3, 0, 1), (0, 0, 4)):
            counts = [n for n in pieces if n]
            going = [i for i, n in enumerate(pieces) if n]
            ids = [rows[i][caches[i].length:][:pieces[i]] for i in going]
            logits = model(np.concatenate(ids)[None], PackedCache([caches[i] for i in going], counts)).data[0]
            for i, part in zip(going, np.split(logits, np.cumsum(counts)[:-1])):
                got[i].append(part)
        for row, parts in zip(rows, got):
            np.testing.assert_allclose(np.concatenate(parts), model(row[None]).data[0], rtol=1e-9, atol=1e-12)


def check_float32_batch():
    model = trained("float32")
    alone = [complete(model, TOKENIZER, [prompt], 8, seed=1)[0] for prompt in PROMPTS]
    assert complete(model, TOKENIZER, PROMPTS, 8, seed=1) == alone


class Drawn:
    """A random stream that only looks at what it is asked to draw from."""

    def choice(self, n, p):
        self.p = p
        return int(p.argmax())


def check_draws():
    """The fewest that hold top_p, also where the sum meets it exactly; then made to sum to 1; of the top_k."""
    p = [0.125, 0.5, 0.25, 0.125]
    for options, expected in [
        ({}, p), ({"top_p": 0.5}, [0, 1, 0, 0]), ({"top_p": 0.51}, [0, 2 / 3, 1 / 3, 0]), ({"top_p": 0.75}, [0, 2 / 3, 1 / 3, 0]),
        ({"top_p": 0.76}, [1 / 7, 4 / 7, 2 / 7, 0]), ({"top_p": 1e-9}, [0, 1, 0, 0]), ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]), ({"top_k": 2, "top_p": 0.7}, [0, 2 / 3, 1 / 3, 0]), ({"top_k": 9}, p),
        ({"temperature": 0.5, "top_p": 0.8}, [0, 0.8, 0.2, 0])]:
        rng = Drawn()
        assert draw(np.log2(np.array(p)) * np.log(2), rng, **{"temperature": 1.0, **options}) == 1
        np.testing.assert_allclose(rng.p, expected, rtol=1e-12, err_msg=str(options))
    assert draw(np.array([1.0, 3.0, 2.0]), None, 0) == 1


STOPS = [  # text, stop strings, what is left of it
    ("one two three", ["two"], "one "), ("one two three", ["three", "two"], "one "), ("one two", ["x"], "one two"),
    ("aaab", ["aab"], "a"), ("abcabd", ["abd"], "abc"), ("one\n\ntwo", ["\n\n"], "one"), ("é€𝄞x", ["𝄞"], "é€"),
    ("abc", ["abc"], ""),
    ("", ["a"], ""), ("ab", ["abc", "b!"], "ab"),  # held back to the end, and said
    ("xabcdy", ["abcd", "bc"], "xa"),  # complete first, though it begins later
    ("xabcy", ["bc", "abc"], "x"), ("ababac", ["abac"], "ab")]


def check_stops():
    """Cut into pieces in every way, the text ends at the same place, and nothing of a stop string is ever said."""
    for text, stops, expected in STOPS:
        for cut in {1, 2, 3, len(text) or 1}:
            for offset in range(cut):
                until, said = Until(stops), ""
                for piece in [text[:offset], *(text[i:i + cut] for i in range(offset, len(text), cut))]:
                    said += until.add(piece)
                    assert expected.startswith(said)
                    if until.done:
                        break
                assert said + until.rest() == expected, (text, stops, cut)
    until = Until(["stop"])
    assert (until.add("a st"), until.add("range"), until.held) == ("a ", "strange", "")  # said as soon as it can be


@contextmanager
def dictated(texts):
    """The model's next ids are those of a text for each prompt, whatever it has computed."""
    scripts = {}

    def go_on(model, sequences, *_):
        for s in sequences:
            script = scripts.setdefault(id(s), iter([*texts[len(scripts) % len(texts)], TOKENIZER.end]))
            s.ids.append(next(script))
            s.cache = KVCache(1)
            kept.append(s)
        return len(sequences)

    kept, right = [], generate.go_on
    generate.go_on = go_on
    try:
        yield kept
    finally:
        generate.go_on = right


def check_stop_in_stream():
    """Across the tokens' borders (a token is a byte), for each prompt of a batch; who has ended is not asked again."""
    texts = [TOKENIZER.encode(t) for t in ("the end. more", "né stop é", "no")]
    with dictated(texts) as asked:
        pieces = list(stream(None, TOKENIZER, ["p", "q", "r"], 30, stop=["end", "stop", "é s"]))
    assert ["".join(p for i, p in pieces if i == n) for n in range(3)] == ["the ", "n", "no"]
    assert Counter(map(id, asked)).most_common() == sorted(Counter(map(id, asked)).items(), key=lambda c: -c[1])
    assert sorted(Counter(map(id, asked)).values()) == [3, 5, 7]  # "no" and the mark; up to "s" of "é s"; up to "d" of "end"
    with dictated([texts[2]]):
        assert complete(None, TOKENIZER, ["p"], 30, stop=["now"]) == ["no"]  # held back, then the mark comes
    with dictated([texts[0]]):
        assert complete(None, TOKENIZER, ["p"], 5, stop=["end"]) == ["the e"]  # held back, then the tokens are used up


def pieces_of(tokenizer, ids, before=()):
    """The pieces, and what was held back to the end."""
    text = Text(tokenizer, before)
    return [text.add(i) for i in ids], text.rest()


def check_any_ids():
    """Random ids, marks and unknown ones among them: what is said is what all of them decode to, also after a prompt."""
    rng = np.random.default_rng(0)
    for name in CASES:
        tokenizer = case(name)
        for n in range(60):
            high = tokenizer.vocab_size + 2 if n % 2 else 8 + n
            ids = [int(i) for i in rng.integers(0, high, rng.integers(1, 30))]
            pieces, rest = pieces_of(tokenizer, ids)
            assert "".join(pieces) + rest == tokenizer.decode(ids), (name, ids)
            assert name not in AT_THE_END or not any(pieces)
            prompt = [tokenizer.end, *tokenizer.encode(("", "the", " cat the ", "a \ufffd", "no.")[n % 5])]
            pieces, rest = pieces_of(tokenizer, ids, prompt)
            assert tokenizer.decode(prompt) + "".join(pieces) + rest == tokenizer.decode(prompt + ids), (name, ids, n)


def check_characters():
    """Pieces are whole characters, each as soon as it is complete; bytes that are no text show as `decode` shows them."""
    whole = "aé€𝄞 𝄞𝄞 é" * 5
    pieces, rest = pieces_of(TOKENIZER, TOKENIZER.encode(whole))
    assert [p for p in pieces if p] == list(whole)
    assert not rest
    llama = case("llama 2")
    euro, g_clef = (llama.encode(c)[1:] for c in "€𝄞")
    the = llama.inner.token_to_id("▁the")
    assert pieces_of(llama, [the, *euro, *g_clef, the]) == (["the", *[""] * 7, "€𝄞 the"], "")
    assert pieces_of(llama, [*euro, *g_clef, *g_clef[:2]]) == ([""] * 9, "\ufffd" * 9), "one byte of a row spoils the others"
    assert pieces_of(llama, [the] * 3, [llama.end, *euro]) == ([" the"] * 3, "")
    assert pieces_of(llama, [*euro[:1], the], [llama.end, *euro]) == (["", "\ufffd the"], ""), "but not the prompt before them"
    assert pieces_of(llama, euro * 3, [llama.end, the]) == ([""] * 9, "€€€")
    asked = []
    text = Text(llama, [llama.end, the])
    llama.inner, right = Asked(llama.inner, asked), llama.inner
    try:
        assert [text.add(the) for _ in range(200)] == [" the"] * 200
    finally:
        llama.inner = right
    assert max(asked) < 5  # not all of the text for each token


class Asked:
    """A tokenizer of the library that notes how many ids it decodes at a time."""

    def __init__(self, inner, asked):
        self.inner, self.asked = inner, asked

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def decode(self, ids, **options):
        self.asked.append(len(ids))
        return self.inner.decode(ids, **options)


def check_stop_of_bytes():
    """A stop string whose characters are complete with the last id only; and one that is none, in the end."""
    llama = case("llama 2")
    with dictated([[*llama.encode("the €€"), llama.end], [*llama.encode("the €")[:-1], llama.end]]):
        assert complete(None, llama, ["p", "p"], 8, stop=["€€"]) == [" the ", " the \ufffd\ufffd"]


def check_merged():
    """The same text from dense layers; and the cache's and the weights' bytes, by counting."""
    model = trained()
    before = complete(model, TOKENIZER, PROMPTS, 8, seed=1)
    swap.merge(model)
    assert complete(model, TOKENIZER, PROMPTS, 8, seed=1) == before
    assert generate.bytes_of(model) == 8 * (2 * 257 * 16 + 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16) + 16)


def check_speed():
    """What was read and written, exactly; a prompt's first id comes with reading it."""
    speed = Speed()
    with dictated([[5, 6, 7]]):
        complete(None, TOKENIZER, ["", "ab", "abcd"], 3, speed=speed, together=2)
    assert (speed.read_ids, speed.new_ids) == (3, 2 * 3)
    speed = Speed()
    complete(trained(), TOKENIZER, ["", "ab"], 3, temperature=0, speed=speed)
    assert (speed.read_ids, speed.new_ids) == (1 + 3, 2 * 2)
    assert speed.cache_bytes == 2 * 2 * 2 * 4 * 8 * (6 + 6)  # K and V, layers, heads, width, float64, room for 6 twice
    assert min(speed.read_seconds, speed.new_seconds) > 0


def check_generate():
    """The function that train.py calls: ids, their number, the id at which it ends; gradients are recorded between two ids."""
    model = trained()
    ids = list(generate.generate(model, [0, 5], 30, generator(1, "sample")))
    assert len(ids) == 30
    assert list(generate.generate(model, [0, 5], 30, generator(1, "sample"), 0.8, 0, ids[7])) == ids[:ids.index(ids[7])]
    assert list(generate.generate(model, [0, 5], 30, generator(1, "sample"), top_p=0.2)) != ids
    for _ in generate.generate(model, [0, 5], 2, generator(1, "sample")):
        x = Tensor(np.ones(2), requires_grad=True)
        (x * x).sum().backward()
        assert x.grad.tolist() == [2, 2]


CHECKS = (check_batch_equals_alone, check_alone_equals_definition, check_packed_logits, check_float32_batch, check_draws,
          check_stops, check_stop_in_stream, check_characters, check_any_ids, check_stop_of_bytes, check_merged,
          check_speed, check_generate)


@pytest.mark.parametrize("check", CHECKS)
def test_generation(check):
    check()


SAMPLING = [
    (draw, "order[1 + np", "order[0 + np"), (draw, "order[1 + np", "order[2 + np"), (draw, "np.argsort(-p", "np.argsort(p"),
    (draw, "        p /= p.sum()\n    return", "    return"), (draw, "top_p < 1", "top_p < 0.7"),
    (draw, "[top_k:]] = -np.inf", "[top_k + 1:]] = -np.inf"), (draw, "max()) / temperature", "max())"),
    (draw, "np.cumsum(p[order])", "np.cumsum(p)"),
]
TOGETHER = [
    (Sequence.unseen, "self.ids[-1:]", "self.ids[-2:-1]"),
    (Sequence.unseen, "self.cache.length < limit", "self.cache.length <= limit"),
    (Sequence.unseen, "limit // 2", "limit // 3"), (Sequence.unseen, "if len(self.ids) > limit", "if len(self.ids) >= limit"),
    (go_on, "np.cumsum(counts) - 1", "np.cumsum(counts) - np.array(counts)"),
    (go_on, "zip(sequences, logits)", "zip(sequences, logits[::-1])"),
    (go_on, "sequence.rng", "sequences[0].rng"),
    (PackedCache.positions, "cache.positions(n) for cache, n in", "self.caches[0].positions(n) for cache, n in"),
    (PackedCache.positions, "np.concatenate([cache.positions(n) for cache, n in zip(self.caches, self.counts)])",
     "np.arange(count)"),
    (llama.PackedLayer.attend, "[0, *self.ends[:-1]]", "[0] * len(self.ends)"),
    (llama.LayerCache.extend, "self.length = end", "self.length = end - 1"),
    (KVCache.positions, "self.length, self.length + count", "count"),
    (stream, 'generator(seed, "sample")', 'generator(seed, "sample", i)'),
    (stream, "[tokenizer.end, *tokenizer.encode(prompts[i])]", "[tokenizer.end, *tokenizer.encode(prompts[begin])]"),
]
ENDS = [
    (Until.add, "min(found)[1]", "max(found)[1]"), (Until.add, "(i + len(stop), i)", "(i, i)"),
    (Until.add, "self.held + piece", "piece"),
    (Until.add, "text[:min(found)[1]]", "text[:min(found)[0]]"), (Until.add, "range(1, len(stop))", "range(1, 2)"),
    (Until.add, "self.held = text[len(text) - keep:]", "self.held = ''"), (Until.rest, "return rest", "return ''"),
    (Text.add, 'text.endswith("\\ufffd")', "False"), (Text.add, "self.open or ", ""),
    (Text.add, "not self.tokenizer.is_silent(token)", "True"), (Text.add, "text[self.said:]", "text"),
    (Text.add, "self._keep(self.ids)", "self.said = len(text)"), (Text._keep, "self.said and ", ""),
    (Text.rest, "[self.said:]", "[len(self.tokenizer.decode(self.ids)):]"), (Text.__init__, "list(before)", "[]"),
    (stream, "piece += until.rest()", "pass"), (stream, "piece += until.add(text.rest())", "pass"),
    (tokenizers.Tokenizer.is_silent, "i in self._marks or ", ""),
    (stream, "                    del going[i]\n", "                    pass\n"), (stream, "if last or until.done", "if last"),
    (Speed.add, "if first:", "if False:"),
]
test_draw_mutants = mutant_tests(SAMPLING, check_draws)
test_batch_mutants = mutant_tests(TOGETHER, check_packed_logits, check_alone_equals_definition, check_batch_equals_alone)
test_end_mutants = mutant_tests(ENDS, check_stops, check_stop_in_stream, check_characters, check_any_ids, check_stop_of_bytes,
                                check_speed)
test_generate_mutants = mutant_tests([
    (generate.generate, "range(count)", "range(count - 1)"), (generate.generate, "if sequence.ids[-1] == stop:", "if False:"),
    (go_on, "top_k, top_p)", "top_k)"),
], check_generate)


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b"a figure"))
        return run_job(tmp_path_factory.mktemp("run"), steps=3)


def said(capsys, *argv, code=0):
    capsys.readouterr()
    assert run_command(generate.main, [str(a) for a in argv]) == code
    return capsys.readouterr()


def test_several_prompts_in_order(capsys, run, tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffé one\r\n\nab\n".encode())
    out, _ = said(capsys, run, "--prompt", "first", "--prompts", tmp_path / "prompts.txt", "--tokens", 8, "--together", 2)
    expected = complete(checkpoint.load_model(run), checkpoint.load_tokenizer_of(run), ["first", "é one", "ab"], 8)
    assert out == "".join(f"--- {i} of 3\n{p}{shown(t)}\n" for i, (p, t) in enumerate(zip(["first", "é one", "ab"], expected), 1))
    alone, _ = said(capsys, run, "--prompt", "ab", "--tokens", 8)
    assert alone == f"ab{shown(expected[2])}\n"


def test_speed_and_memory_are_said_on_stderr(capsys, run):
    out, err = said(capsys, run, "--prompt=ab", "--tokens=5", "--temperature=0")
    assert err.startswith("as trained: 3 ids read at ")
    assert "4 written at" in err
    assert err.count("\n") == 1
    merged, err = said(capsys, run, "--prompt=ab", "--tokens=5", "--temperature=0", "--merge")
    assert (merged, err.split(":")[0]) == (out, "merged")


def test_compare_runs_both(capsys, run):
    out, err = said(capsys, run, "--prompt=ab", "--tokens=5", "--compare")
    lines = out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| weights", "|---|---|---|---|---|---|", "| as trained", "| merged",
                                                        "1 prompts, 3 ids read, 4 and 4 written; the same text for 1 of 1"]
    assert float(lines[2].split(" | ")[3]) < float(lines[3].split(" | ")[3])
    assert err == ""


def test_a_prompt_that_is_too_long_is_said(capsys, run):
    _, err = said(capsys, run, "--prompt", "ab " * 50, "--tokens=3")
    assert err.splitlines()[0] == "prompt 1: 151 ids, this model sees 16: it goes on from the last 8"


def test_control_characters_are_shown_as_codes():
    assert shown("a\tb\n\x1b[31m\r\x00\x7f\x9b é𝄞") == "a\tb\n\\x1b[31m\\x0d\\x00\\x7f\\x9b é𝄞"


@pytest.mark.parametrize(("flags", "words"), [
    (["--top-p=0"], ("--top-p 0.0", "above 0 and at most 1")), (["--top-p=1.1"], ("--top-p 1.1", "at most 1")),
    (["--top-p=nan"], ("--top-p nan", "above 0")), (["--stop", ""], ("--stop", "at least one character")),
    (["--stop", "a", ""], ("--stop", "at least one character")), (["--stop", "\udcff"], ("--stop", "UTF-8")),
    (["--stop"], ("--stop", "expected")),
    (["--prompts=nowhere"], ("--prompts nowhere", "No such file")), (["--prompts="], ("--prompts",)),
    (["--prompts={bad}"], ("bad.txt", "not UTF-8 text (byte 3)")), (["--prompts={empty}"], ("empty.txt", "no prompt in it")),
    (["--together=0"], ("--together 0", "at least 1")), (["--merge", "--compare"], ("--merge", "--compare")),
])
def test_refused_in_one_line(capsys, run, tmp_path, flags, words):
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    (tmp_path / "empty.txt").write_bytes(b"\n\n")
    flags = [f.format(bad=tmp_path / "bad.txt", empty=tmp_path / "empty.txt") for f in flags]
    out, err = said(capsys, run, *flags, code=2)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_logits_that_are_no_numbers_are_refused():
    model = trained()
    model.lm_head.weight.data[3] = np.nan
    with pytest.raises(InputError, match="not numbers"):
        complete(model, TOKENIZER, ["a", "b"], 3)


def test_prompts_one_per_line(tmp_path):
    (tmp_path / "p").write_bytes("\ufeffa b \r\n\n\u2028c\x0bd\n".encode())
    assert read_prompts(tmp_path / "p") == ["a b ", "\u2028c\x0bd"]


def test_text_is_streamed_and_utf8_survives_a_pipe(run):
    done = subprocess.run([sys.executable, "-m", "minisl.generate", str(run), "--prompt=é𝄞", "--tokens=3"], cwd=ROOT,
                          capture_output=True)
    assert done.returncode == 0
    assert done.stdout.decode().startswith("é𝄞")
