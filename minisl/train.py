"""`python -m minisl.train --tiny`: pretrain a LLaMA with SLTrain. Reads top to bottom."""

import math
import platform
import shlex
import signal
import sys
import tempfile
import time
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

import minisl
from minisl import checkpoint, kernels, methods, optim
from minisl.backend import choose_device, generator, keep_freed_memory, matmul_precision, read
from minisl.blas import restart_with_better_kernels
from minisl.command import run_command
from minisl.config import MAY_CHANGE, Settings, parse
from minisl.data import Batches, load_corpus, make_tokenizer, tokenize
from minisl.errors import InputError
from minisl.evaluate import evaluate
from minisl.generate import generate
from minisl.metrics import Metrics, gpu_memory, peak_memory
from minisl.metrics import read as read_metrics
from minisl.nn import LlamaConfig
from minisl.nn.config import read_json
from minisl.parallel import Workers


def train(settings, run, resumed=None, xp=np, on="NumPy", corpus=None):
    """Train until `settings.steps`, or until Ctrl-C. run: the folder; resumed: the state to go on from, or None; xp: NumPy or
    CuPy; on: words for what computes; corpus: the text of `settings.data`, where it was read before.

    Returns an exit code: 0 done, 130 stopped by Ctrl-C (saved), 1 the loss is no longer a number.
    """
    # Text -> tokens -> batches
    corpus = corpus or load_corpus(settings.data)
    if resumed:
        checkpoint.check_corpus(resumed, corpus, run)
        config, tokenizer = LlamaConfig.from_json(run / "config.json"), checkpoint.load_tokenizer_of(run)
    else:
        config = settings.model_config()
        tokenizer = make_tokenizer(settings.tokenizer, corpus.train, config.vocab_size)
        config.bos_token_id = config.eos_token_id = tokenizer.end
    tokens, held_out = (tokenize(tokenizer, documents, run) for documents in (corpus.train, corpus.validation))
    held_out_bytes = sum(len(d.encode()) for d in corpus.validation)
    batches = Batches(tokens, settings.batch_size, settings.seq_len, settings.seed)

    # Model and optimizer
    options = settings.to_dict()
    method = methods.Method(settings.method, options)
    model = method.build(config, generator(settings.seed, "init"), settings.dtype).to(xp)
    model.model.activation_checkpointing = settings.activation_checkpointing
    optimizer = method.optimizer(model, settings.lr, settings.optimizer, settings.weight_decay, settings.seed)
    optimizer.check()
    if settings.per_layer:
        optimizer.update_in_backward()
    schedule, factors = refined_schedule(settings, run, resumed)
    step = 0
    if resumed:
        step = resumed["step"]
        checkpoint.restore(run, model, optimizer, resumed)
    else:
        checkpoint.start_run(run, config, settings.method, options, tokenizer, settings.dtype)
        if schedule:
            checkpoint.write_json(run / "schedule.json", schedule)

    print(f"{run}: {settings.method}, {model.num_parameters():,} parameters, {settings.dtype}, {on}")
    print(f"{corpus.name}: {len(tokens):,} training tokens, {len(held_out):,} held out ({held_out_bytes:,} bytes), "
          f"{batches.sequences:,} sequences of {settings.seq_len} an epoch")

    def save():
        checkpoint.save(run, model, optimizer, {
            "step": step, "batches": step * settings.accumulate, "settings": options,
            "rng": {"seed": settings.seed, "note": "every stream is a function of the seed, its purpose and its position"},
            "corpus": {"name": corpus.name, "sha256": corpus.sha256},
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "minisl": minisl.__version__}})

    per_step = settings.batch_size * settings.accumulate * settings.seq_len
    workers = Workers(settings.parts if xp is np else 1)
    parameters, busy, first, stopped = model.parameters(), 0.0, step, False

    def loss_of(inputs, labels):
        """These rows' share of the update's mean loss."""
        return model.loss(inputs, labels, 1 / per_step)

    with (closing(Metrics(run / "metrics.jsonl", step)) as metrics, finish_step_on_ctrl_c() as asked_to_stop,
          np.errstate(over="ignore", invalid="ignore"),  # a loss that is no number is looked for below
          tqdm(total=settings.steps, initial=step, unit="step", dynamic_ncols=True) as bar):
        while step < settings.steps and not stopped:
            started = time.perf_counter()
            optimizer.lr = optim.learning_rate(
                step + 1, peak=settings.lr, steps=settings.steps, warmup=settings.warmup_steps(), schedule=settings.schedule,
                min_ratio=settings.min_lr_ratio, decay_fraction=settings.decay_fraction, phi=settings.uba_phi, factors=factors)
            method.before_step(model, optimizer, step + 1, settings.steps, settings.seed)
            mean_loss = 0.0
            for k in range(settings.accumulate):
                mean_loss += workers.backward(loss_of, *batches(step * settings.accumulate + k))
            if settings.clip_norm:
                norm = optim.clip_grad_norm(parameters, settings.clip_norm)
            else:
                norm = optimizer.taken_norm() if settings.per_layer else optim.grad_norm(parameters)
            optimizer.step()
            model.zero_grad()
            mean_loss, norm = read(mean_loss, norm)  # a GPU has only been told what to do so far: it is waited for here
            if not (math.isfinite(mean_loss) and math.isfinite(norm)):
                bar.close()
                return report_nan(run, step + 1, f"loss is {mean_loss}, gradient norm {norm}")
            step += 1

            taken = time.perf_counter() - started
            busy += taken
            record = {"step": step, "loss": mean_loss, "lr": optimizer.lr, "tokens": step * per_step,
                      "tokens_per_second": per_step / taken, "grad_norm": norm}
            last, stopped = step == settings.steps, bool(asked_to_stop)
            if last or step % settings.eval_every == 0:
                record |= evaluate(model, held_out, held_out_bytes, tokenizer.end, settings.batch_size, settings.seq_len)
                if not math.isfinite(record["val_loss"]):
                    bar.close()
                    return report_nan(run, step, f"validation loss is {record['val_loss']}")
                bar.set_description(f"{record['bits_per_byte']:.3f} bits per byte")
            metrics.append(record)
            bar.set_postfix_str(f"loss {mean_loss:.3f}, {per_step * (step - first) / busy:,.0f} tokens/s", refresh=False)
            bar.update()
            if last or stopped or step % settings.save_every == 0:
                save()

    draw_loss(run, metrics.records, f"{settings.method}, {model.num_parameters() / 1e6:.2f}M parameters")
    if stopped and step < settings.steps:
        print(f"stopped at step {step}, saved; go on with: python -m minisl.train --resume {shlex.quote(str(run))}")
        return 130
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            text = tokenizer.decode_documents(generate(model, [tokenizer.end], 300, generator(settings.seed, "sample")))
    except InputError as error:
        text = f"(none: {error})"
    checkpoint.write_text(run / "sample.txt", text + "\n")
    print_summary(run, model, xp, metrics.records[-1], per_step * (step - first) / busy if busy else 0.0, text)
    return 0


def refined_schedule(settings, run, resumed):
    """For --schedule refined (what is kept in schedule.json, the steps' factors): at a resume the other run may be gone, and
    --steps be another number. (None, None) for other schedules."""
    if settings.schedule != "refined":
        return None, None
    path = run / "schedule.json" if resumed else Path(settings.norms_of) / "metrics.jsonl"
    kept = read_json(path) if resumed else {"grad_norm": [record.get("grad_norm") for record in read_metrics(path)]}
    try:
        return kept, optim.refined(kept.get("grad_norm"), settings.steps)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


@contextmanager
def finish_step_on_ctrl_c():
    """Yields a list that is non-empty once Ctrl-C was pressed; a second Ctrl-C interrupts at once."""
    asked = []

    def ask(signum, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: nobody can press Ctrl-C here
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def report_nan(run, step, what):
    saved = (run / "state.json").exists()
    kept = f"the checkpoint of step {checkpoint.load_state(run)['step']} is kept" if saved else "no checkpoint yet"
    print(f"error: step {step}: {what}; training stopped, {kept} (try a lower --lr or --clip-norm 1)", file=sys.stderr)
    return 1


def draw_loss(run, records, title):
    try:
        from minisl.plot import loss_figure

        with checkpoint.replacing(run / "loss.png") as [path]:
            loss_figure(path, records, title)
    except Exception as error:  # a matplotlib that is missing or broken must not cost the run
        why = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"no loss.png: matplotlib does not work here ({why})", file=sys.stderr)


def print_summary(run, model, xp, record, tokens_per_second, text):
    peak = peak_memory()
    gpu = [] if xp is np else [("GPU memory pool", f"{gpu_memory(xp) / 1e6:,.0f} MB")]
    rows = [("parameters", f"{model.num_parameters():,}"), ("steps", f"{record['step']:,}"), ("tokens", f"{record['tokens']:,}"),
            ("tokens/s", f"{tokens_per_second:,.0f}"), ("peak memory", f"{peak / 1e6:,.0f} MB" if peak else "not known here"),
            *gpu, ("training loss", f"{record['loss']:.4f}"), ("validation loss", f"{record['val_loss']:.4f}"),
            ("perplexity", f"{record['perplexity']:.2f}"), ("bits per byte", f"{record['bits_per_byte']:.4f}")]
    print("\n" + "\n".join(f"  {name:16}{value:>16}" for name, value in rows))
    print(f"\nA sample:\n\n{text.strip()}\n\n{run} holds the model, loss.png and sample.txt. "
          f"More text: python -m minisl.generate {shlex.quote(str(run))} --prompt 'The '")


def prepare(argv):
    """(settings, folder, state to resume or None) from the command line."""
    settings, given = parse(argv)
    if settings.resume:
        run = Path(settings.resume)
        state = checkpoint.load_state(run)
        saved = Settings(**state["settings"])
        has = saved.to_dict() | methods.Method(saved.method, saved.to_dict()).options
        asked = {name: getattr(settings, name) for name in given - MAY_CHANGE - {"method_options"}} | settings.method_options
        for name in sorted(asked, key=lambda name: (name != "method", name)):
            if asked[name] != has[name]:
                raise InputError(f"--resume {run}: that run has --{name.replace('_', '-')} {has[name]}, "
                                 f"it cannot go on with {asked[name]}")
        if settings.out and Path(settings.out) != run:
            raise InputError(f"--out {settings.out}: a resumed run stays in its folder {run}")
        for name in MAY_CHANGE & given:
            setattr(saved, name, getattr(settings, name))
        saved.check()
        if saved.steps <= state["step"]:
            raise InputError(f"--resume {run}: already at step {state['step']} of {saved.steps}; give a larger --steps to go on")
        return saved, run, state
    return settings, Path(settings.out) if settings.out else next_run(settings.method), None


@contextmanager
def folder_of(run, settings):
    """A new run's folder for the block; folders made here that hold nothing where it fails are removed again.

    Raises InputError where there is a run, something else is in it, or it cannot be written.
    """
    made = []
    try:
        try:
            made = [p for p in (run, *run.parents) if not p.exists()]
            run.mkdir(parents=True, exist_ok=settings.out is not None)
            if (run / "state.json").exists():
                raise InputError(f"--out {run}: already holds a run; go on with --resume {run}, or choose another folder")
            if any(run.iterdir()):
                raise InputError(f"--out {run}: is not empty; choose another folder")
            tempfile.TemporaryFile(dir=run).close()  # can we write here?
        except OSError as error:
            raise InputError(f"--out {run}: cannot be written ({error.strerror})") from None
        yield
    except BaseException:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def next_run(method):
    """runs/001-METHOD, or the first number that is free."""
    numbers = [int(p.name[:3]) for p in Path("runs").glob("[0-9][0-9][0-9]-*")]
    return Path("runs") / f"{max(numbers, default=0) + 1:03d}-{method}"


def main(argv):
    settings, run, state = prepare(argv)
    keep_freed_memory()

    def say(line):
        tqdm.write(line, file=sys.stderr)  # the bar may be there already

    with nullcontext() if state else folder_of(run, settings):
        xp, _ = choose_device(settings.device)
        with (kernels.running(settings.backend, settings.threads, say, xp, settings.dtype) as on,
              matmul_precision(settings.matmul_precision, xp)):
            kernels.check_algorithm(settings.algorithm, kernels.of(xp.zeros(0, settings.dtype)))
            return train(settings, run, state, xp, on)


if __name__ == "__main__":
    restart_with_better_kernels("minisl.train")
    sys.exit(run_command(main))
