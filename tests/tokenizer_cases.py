"""Small tokenizers of the kinds that published models have, each with an end mark."""

from functools import cache

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from minisl.data import Tokenizer, make_tokenizer

TEXT = "The cat sat. Don't say no , naïve 日本 of 🙂 it's\n\tover  there"
BYTES = [f"<0x{n:02X}>" for n in range(256)]
CHARACTERS = sorted({*TEXT.replace(" ", "").replace("日", "").replace("🙂", ""), *"<>/s|", "▁", "\ufffd"})
WORDS = ["▁the", "▁cat", "the", "at", "▁▁", "▁na"]
MARKS = ["<unk>", "<s>", "</s>"]
START_IN_TEXT = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def built(model, pre_tokenizer=None, decoder=None, normalizer=None, marks=MARKS):
    inner = tokenizers.Tokenizer(model)
    if pre_tokenizer:
        inner.pre_tokenizer = pre_tokenizer
    if decoder:
        inner.decoder = decoder
    if normalizer:
        inner.normalizer = normalizers.Sequence(normalizer)
    inner.add_special_tokens(marks)
    return Tokenizer(inner)


def vocabulary(*words):
    return {word: n for n, word in enumerate(dict.fromkeys([*MARKS, *words]))}


def byte_fallback(normalizer, decoder):
    words = vocabulary(*BYTES, *CHARACTERS, "th", "the", "▁the", "at", "▁c", "▁cat", "▁▁")
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "t"), ("▁", "c"), ("▁c", "at"), ("▁", "▁")]
    return built(models.BPE(words, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True), None,
                 decoders.Sequence(decoder), normalizer)


def unigram(more=(), **options):
    vocab = [(word, -float(n % 7)) for n, word in enumerate(vocabulary(*more, *WORDS, *CHARACTERS))]
    return models.Unigram(vocab, unk_id=0, **options)


def wordpiece(decoder):
    words = ["the", "cat", "s", "##at", "##s", "Don", "'", "t", "n't", "say", "no", "do", ".", ",", "日", "##本"]
    return built(models.WordPiece(vocabulary("[UNK]", *words), unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(), decoder)


def wordlevel(decoder=None):
    return built(models.WordLevel(vocabulary("cat", "sat", "The", "</s>"), unk_token="<unk>"),
                 pre_tokenizers.WhitespaceSplit(), decoder)


CASES = {
    "bytes": lambda: make_tokenizer("bytes", [], 257),
    "bpe": lambda: make_tokenizer("bpe", [TEXT] * 2, 280),
    "llama 2": lambda: byte_fallback(START_IN_TEXT, [*LLAMA, decoders.Strip(" ", 1, 0)]),
    "gemma": lambda: byte_fallback([normalizers.Replace(" ", "▁")], LLAMA),
    "t5": lambda: built(unigram(), pre_tokenizers.Metaspace(), decoders.Metaspace()),
    "unigram with bytes": lambda: built(unigram(BYTES, byte_fallback=True), pre_tokenizers.Metaspace(),
                                        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])),
    "bert": lambda: wordpiece(decoders.WordPiece()),
    "words": wordlevel,
    "gpt 1": lambda: built(models.BPE(vocabulary("a</w>", "b</w>", "a", "b", "c"), []), None, decoders.BPEDecoder()),
    "ctc": lambda: wordlevel(decoders.CTC("cat", "sat")),
    "a replacement across tokens": lambda: built(unigram(), None, decoders.Sequence(
        [decoders.Fuse(), decoders.Replace(Regex("a+t"), "#")])),
}
AT_THE_END = {"gpt 1", "ctc", "a replacement across tokens"}  # nothing is said before


@cache
def case(name):
    return CASES[name]()
