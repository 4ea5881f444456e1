"""Text to tokens to batches."""

from minisl.data.batches import Batches, PaddedBatches, validation_batches
from minisl.data.corpora import Corpus, load_corpus, load_documents
from minisl.data.dataset import PROTOCOLS, Data, in_memory, open_data
from minisl.data.sources import located
from minisl.data.tokenizers import Tokenizer, load_tokenizer, make_tokenizer
from minisl.data.tokens import tokenize

__all__ = [
    "PROTOCOLS", "Batches", "Corpus", "Data", "PaddedBatches", "Tokenizer", "in_memory", "load_corpus", "load_documents",
    "load_tokenizer", "located", "make_tokenizer", "open_data", "tokenize", "validation_batches",
]
