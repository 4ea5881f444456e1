"""Text to tokens to batches."""

from minisl.data.batches import Batches, validation_batches
from minisl.data.corpora import Corpus, load_corpus, load_documents
from minisl.data.tokenizers import Tokenizer, load_tokenizer, make_tokenizer
from minisl.data.tokens import tokenize

__all__ = [
    "Batches", "Corpus", "Tokenizer", "load_corpus", "load_documents", "load_tokenizer", "make_tokenizer", "tokenize",
    "validation_batches",
]
