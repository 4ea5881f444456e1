"""Datasets of the Hugging Face hub, streamed through `datasets` (extra `hf`)."""

import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from minisl.data.files import checked, needed
from minisl.errors import InputError

INSTEAD = "or give local files: .jsonl, .jsonl.gz, .jsonl.zst, .json.gz, .parquet"
SECONDS = 10  # until a hub that does not answer counts as out of reach


def parse_name(source):
    """(name, config or None) of "c4", "hf:NAME" or "hf:NAME:CONFIG"; None for other sources."""
    if source == "c4":
        return "allenai/c4", "en"
    if not source.startswith("hf:"):
        return None
    found = re.fullmatch(r"hf:(\w[\w.-]*(?:/\w[\w.-]*)?)(?::([^:]+))?", source)
    if not found:
        raise InputError(f"--data {source}: not a dataset's name; expected hf:NAME or hf:NAME:CONFIG, such as hf:allenai/c4:en")
    return found.groups()


def open_hub(source, name, config):
    """split -> `datasets.IterableDataset`, of "train" and, if there is one, "validation". Raises InputError, within seconds."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    datasets = needed("datasets", source, "a dataset of the hub")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    for retry in ("OPEN_MAX_RETRIES", "READ_MAX_RETRIES"):
        setattr(datasets.config, f"STREAMING_{retry}", 4)
    for interval in ("OPEN_RETRY_INTERVAL", "READ_RETRY_INTERVAL", "READ_SERVER_UNAVAILABLE_RETRY_INTERVAL",
                     "READ_RATE_LIMIT_RETRY_INTERVAL"):
        setattr(datasets.config, f"STREAMING_{interval}", 2)
    if not Path(name).is_dir():
        check_reachable(source, datasets.config.HF_ENDPOINT)
    try:
        splits = datasets.load_dataset(name, config, streaming=True)
        if "train" not in splits:
            raise InputError(f"--data {source}: has no split 'train' (it has {', '.join(splits)})")
        return {split: splits[split] for split in ("train", "validation") if split in splits}
    except InputError:
        raise
    except Exception as error:  # datasets, huggingface_hub, httpx, fsspec, pyarrow: each has its own
        raise InputError(f"--data {source}: {summary(error)}; {INSTEAD}") from None


def check_reachable(source, endpoint):
    """Raise InputError where nothing answers at the hub's address."""
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        raise InputError(f"--data {source}: {endpoint} cannot be reached ({getattr(error, 'reason', error)}); it needs a "
                         f"network, {INSTEAD}") from None


def read_shard(source, split, number, field, skip=0):
    """Yields the text of each record of one shard (a file) of a split but the first `skip`.

    Raises OSError where the network fails, InputError for a record without such a string.
    """
    try:
        part = split.shard(split.num_shards, number)
        if field in (part.column_names or ()):
            part = part.select_columns([field])
        for row, record in enumerate(part.skip(skip) if skip else part, skip + 1):
            yield checked(record.get(field), field, source, f"shard {number}, row {row}", record)
    except InputError:
        raise
    except Exception as error:
        raise OSError(f"--data {source}: shard {number} cannot be read on ({summary(error)})") from None


def summary(error):
    """An error's text in one line, cut at 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
