"""`python -m minisl.train --tiny`: pretrain a LLaMA with SLTrain. Reads top to bottom."""

import math
import platform
import shlex
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import numpy as np
from tqdm import tqdm

import minisl
from minisl import checkpoint, files, hf, kernels, methods, optim, runs, summary
from minisl.backend import IGNORE_LABEL, choose_device, generator, keep_freed_memory, matmul_precision, read
from minisl.blas import restart_with_better_kernels
from minisl.callbacks import Callbacks, TensorBoard, checked
from minisl.command import open_streams, run_command
from minisl.config import parse, settings_from
from minisl.data import open_data
from minisl.distributed import Alone, join
from minisl.errors import InputError, NotSavedError, TrainingError
from minisl.evaluate import evaluate
from minisl.lock import alone_in
from minisl.metrics import Metrics
from minisl.metrics import read as read_metrics
from minisl.parallel import Workers

ROLLBACKS = 10  # from one checkpoint; then --on-nan rollback gives up
MEMORY = 0.98  # of the mean that --max-spike compares with


class Trainer:
    """One run, from text to a trained model: `Trainer(settings, run).train()`.

    run: the folder; found: the Checkpoint to go on from, or None; xp: NumPy or CuPy; on: words for what computes; corpus: the
    text of `settings.data`, where it was read before; callbacks: see `minisl.callbacks`; group: the processes that train
    together, of which the first one writes. Raises InputError: data, settings and checkpoint do not go together.
    """

    def __init__(self, settings, run, found=None, xp=np, on="NumPy", corpus=None, callbacks=(), group=None):
        self.settings, self.run, self.xp = settings, run, xp
        self.group = group = group or Alone()
        self.leads = group.rank == 0
        self.watchers = Callbacks(callbacks if self.leads else (), self.say)
        if settings.tensorboard and self.leads:
            self.watchers.callbacks.append(TensorBoard(run / "tensorboard"))
        self.resumed, self.rolled_back, self.tokens_per_second = bool(found), (None, 0), 0.0
        self.said_zero = False  # that the gradients are all zero
        self.at = {"step": 0, "batch": 0, "tokens": 0, "mean_loss": None, "best": None, "processes": group.size}  # how far it is

        # Text -> tokens -> batches
        self.config = found.config if found else settings.model_config()
        options = {
            "tokenizer": found.tokenizer() if found else settings.tokenizer, "vocab_size": self.config.vocab_size,
            "batch_size": settings.batch_size, "seq_len": settings.seq_len, "seed": settings.seed, "protocol": settings.protocol,
            "share": (group.rank, group.size), "workers": settings.data_workers, "folder": run, "corpus": corpus,
            "text_field": settings.text_field, "validation_documents": settings.validation_documents}
        if found:
            self.data, settings.data = checkpoint.open_data_of(found, run, settings.data, **options)
        else:
            self.data = open_data(settings.data, **options)
        self.began_in = (found and found.state["corpus"].get("folder")) or checkpoint.folder_here()
        self.config.bos_token_id = self.config.eos_token_id = self.data.tokenizer.end

        # Model and optimizer
        self.method = methods.Method(settings.method, settings.to_dict())
        self.schedule, self.factors = refined_schedule(settings, found)
        self.build(None if found else settings.from_hf)
        if found:
            self.data.batches.restore(found.state["data"])
            self.restore(found)
        self.workers = Workers(settings.parts if xp is np else 1)
        self.metrics = Metrics(run / "metrics.jsonl", self.at["step"], self.say) if self.leads else None
        begun = f", from step {found.state['step']:,}" if found else ""
        self.say(f"{run}: {settings.method}, {self.model.num_parameters():,} parameters, {settings.dtype}, {on}{begun}\n"
                 f"{self.data.words}", file=sys.stdout)
        for line in self.data.notes:
            self.say(line)

    def build(self, from_hf=None):
        """Model and optimizer as they start. from_hf: a folder with the weights to start from."""
        s = self.settings
        self.model = self.method.build(self.config, generator(s.seed, "init"), s.dtype)
        if from_hf and (errors := hf.start_from(self.model, from_hf, s.decompose, generator(s.seed, "from_hf"), s.alpha)):
            self.say(hf.words(errors), file=sys.stdout)
        self.model.to(self.xp)
        self.model.model.activation_checkpointing = s.activation_checkpointing
        self.parameters = self.model.parameters()
        self.exchange = self.group.exchange(self.model.named_parameters(), s.shard_optimizer, s.per_layer)
        self.optimizer = self.method.optimizer(self.model, s.lr, s.optimizer, s.weight_decay, s.seed)
        if s.shard_optimizer and not getattr(self.method.module, "SHARDS", True):
            raise InputError(f"--shard-optimizer: not with --method {s.method}, which reads the whole optimizer's state")
        if s.per_layer:
            self.optimizer.update_in_backward()

    def restore(self, found):
        """Model, optimizer and `at` as they were in a checkpoint."""
        found.restore(self.model, self.optimizer, self.exchange.own_part)
        self.at = {name: found.state.get(name) for name in self.at}

    def train(self):
        """Train until `settings.steps`, or until a signal or a callback asks to stop; the signal is returned, else 0.

        Raises TrainingError."""
        s, first, busy, stop, number, leads = self.settings, self.at["tokens"], 0.0, False, 0, self.leads
        saved = self.resumed or self.save()  # whether a checkpoint can be written is known before the first step
        with (self.data, self.watchers, runs.asked_to_stop() as asked,
              np.errstate(over="ignore", invalid="ignore"),  # what is no number is looked for
              tqdm(total=s.steps, initial=self.at["step"], unit="step", dynamic_ncols=True, disable=not leads or None) as bar):
            while self.at["step"] < s.steps and not stop:
                started, step = perf_counter(), self.at["step"] + 1
                last = step == s.steps
                try:
                    record = self.update(step)
                    wrong = self.what_is_wrong(record)
                except np.linalg.LinAlgError as error:  # a method's decomposition, of what are no numbers
                    if s.shard_optimizer:
                        raise  # the others do not have it
                    wrong = str(error)
                busy += perf_counter() - started
                if not wrong and (last or step % s.eval_every == 0):
                    record |= evaluate(self.model, self.data.validation(), self.data.validation_bytes, self.data.tokenizer.end,
                                       self.group)
                    wrong = self.what_is_wrong(record)
                if wrong:
                    self.roll_back(step, wrong)
                    bar.n = self.at["step"]
                    continue
                if self.at["tokens"] == first and self.group.size > 1:
                    self.say(self.traffic(), file=sys.stdout)
                before = self.at["best"]
                best = self.take(record)
                signalled, called_off = self.group.total(len(asked), bool(self.watchers.stopped))
                stop = signalled or called_off
                number = asked[0] if asked else signal.SIGTERM if signalled else 0
                if "val_loss" in record:
                    bar.set_description(f"{record['bits_per_byte']:.3f} bits per byte")
                rate = (self.at["tokens"] - first) / busy
                bar.set_postfix_str(f"loss {record['loss']:.3f}, {rate:,.0f} tokens/s", refresh=False)
                bar.update()
                if last or stop or best or step % s.save_every == 0:
                    saved = self.save()
                    if not saved:
                        self.at["best"] = before
        if not saved:
            raise NotSavedError(f"{self.run}: step {self.at['step']} could not be saved, the checkpoints before are kept")
        self.tokens_per_second = (self.at["tokens"] - first) / busy if busy else 0.0
        return number if self.at["step"] < s.steps else 0

    def update(self, step):
        """One update of the weights, number `step`: its record for metrics.jsonl."""
        s, started = self.settings, perf_counter()
        batches, labels_in_all = self.next_batches()
        self.optimizer.lr = optim.learning_rate(
            step, peak=s.lr, steps=s.steps, warmup=s.warmup_steps(), schedule=s.schedule, min_ratio=s.min_lr_ratio,
            decay_fraction=s.decay_fraction, phi=s.uba_phi, factors=self.factors)
        self.method.before_step(self.model, self.optimizer, step, s.steps, s.seed)

        def loss_of(inputs, labels):
            """These rows' share of the update's mean loss."""
            return self.model.loss(inputs, labels, 1 / labels_in_all)

        loss = 0.0
        for k, batch in enumerate(batches, 1):
            if k == s.accumulate:
                self.exchange.arm()
            loss += self.workers.backward(loss_of, *batch)
        self.exchange.finish()
        if s.clip_norm:
            norm = optim.clip_grad_norm(self.parameters, s.clip_norm, self.exchange.over_all)
        elif s.per_layer:
            norm = self.optimizer.taken_norm()
        else:
            norm = optim.grad_norm(self.parameters, self.exchange.over_all)
        self.optimizer.step()
        self.exchange.share_weights()
        self.model.zero_grad()
        loss, norm = read(loss, norm)  # a GPU has only been told what to do so far: it is waited for here
        [loss] = self.group.total(loss)
        record = {"step": step, "loss": loss, "lr": self.optimizer.lr, "tokens": self.at["tokens"] + labels_in_all,
                  "tokens_per_second": labels_in_all / (perf_counter() - started), "grad_norm": norm, "batch": self.at["batch"]}
        return record | ({"bytes_sent": round(self.exchange.bytes)} if self.group.size > 1 else {})

    def next_batches(self):
        """The batches of an update, and how many labels they have in all processes. Where the data fails in any of them, all is
        saved as it was before, and then raised."""
        position, batches, error = self.data.batches.state(), [], None
        try:
            batches = [self.data.batches(self.at["batch"] + k) for k in range(self.settings.accumulate)]
        except Exception as failed:
            error = failed
        mine = sum(np.count_nonzero(labels != IGNORE_LABEL) for _, labels in batches)
        labels_in_all, failures = self.group.total(mine, error is not None)
        if failures:
            if self.save(position):
                self.say(f"{self.run}: saved at step {self.at['step']}; go on with: python -m minisl.train --resume "
                         f"{shlex.quote(str(self.run))}")
            self.group.together(raise_it, error)
        self.at["batch"] += self.settings.accumulate
        return batches, int(labels_in_all)

    def traffic(self):
        """What a process sends at each update, beside what it would in full rank."""
        full = methods.Method("full", {}).build(self.config, dtype=self.settings.dtype)
        ring = 2 * (self.group.size - 1) / self.group.size * sum(p.data.nbytes for p in full.parameters())
        return (f"{self.group.size} processes, {self.settings.batch_size} sequences a batch; each sends "
                f"{self.exchange.bytes / 1e6:,.4g} MB an update, {ring / 1e6:,.4g} MB in full rank")

    def what_is_wrong(self, record):
        """A sentence where a loss or norm is no number, or the loss jumped; else None."""
        for name, words in (("loss", "loss"), ("grad_norm", "gradient norm"), ("val_loss", "validation loss")):
            if not math.isfinite(record.get(name, 0)):
                return f"{words} is {record[name]}"
        mean, allowed = self.at["mean_loss"], self.settings.max_spike
        if allowed and mean is not None and record["loss"] > mean + allowed:
            return f"loss is {record['loss']:.3f}, its recent mean {mean:.3f} (--max-spike {allowed:g})"
        return None

    def take(self, record):
        """Note a step that went well, and whether it has the best validation loss so far."""
        at, loss = self.at, record["loss"]
        at |= {"step": record["step"], "tokens": record["tokens"],
               "mean_loss": loss if at["mean_loss"] is None else MEMORY * at["mean_loss"] + (1 - MEMORY) * loss}
        best = "val_loss" in record and (not at["best"] or record["val_loss"] < at["best"]["val_loss"])
        if best:
            at["best"] = {"step": record["step"], "val_loss": record["val_loss"]}
        if record["grad_norm"] == 0 and not self.said_zero:
            self.said_zero = True
            self.say(f"step {record['step']}: every gradient is exactly 0, so nothing is learned (begin anew with a lower --lr "
                     "or --clip-norm 1)")
        if self.leads:
            self.metrics.append(record)
        self.watchers.tell("on_step", record)
        if "val_loss" in record:
            self.watchers.tell("on_eval", record)
        return best

    def save(self, position=None):
        """Write a checkpoint, and whether that worked: if not, those before are as they were, and training goes on.

        position: where it goes on in the data (left out: after the last batch)."""
        self.group.check_same(self.model)
        moments = self.exchange.gather_state(self.optimizer.state_dict())
        position = position or self.data.batches.state()
        return self.group.broadcast(self.leads and self.write(moments, position))

    def write(self, moments, position):
        """As `save`, in the process that writes."""
        s = self.settings
        state = {**self.at, "data": position, "settings": s.to_dict(), "schedule": self.schedule,
                 "rng": {"seed": s.seed, "note": "every stream is a function of the seed, its purpose and its position"},
                 "corpus": {"name": self.data.name, "sha256": self.data.sha256, "folder": self.began_in},
                 "versions": {"python": platform.python_version(), "numpy": np.__version__, "minisl": minisl.__version__}}
        self.metrics.sync()
        try:
            folder = checkpoint.save(self.run, self.config, self.data.tokenizer, self.model, moments, state)
        except OSError as error:
            before = checkpoint.folders(self.run)
            if not before:
                raise
            self.say(f"{self.run}: the checkpoint of step {self.at['step']} could not be written ({error.strerror or error}), "
                     f"{before[-1].name} is kept")
            return False
        checkpoint.prune(self.run, s.keep, self.at["best"] and self.at["best"]["step"])
        self.watchers.tell("on_save", folder)
        return True

    def roll_back(self, step, wrong):
        """Go on from the last checkpoint with the batches after the one that went wrong. Raises TrainingError where that is not
        asked for, or has not helped."""
        found, batch = self.group.first(self.last_one), self.at["batch"]
        kept = f"{found.folder.name} is kept" if found else "no checkpoint is left"
        if self.settings.on_nan == "stop" or not found:
            raise TrainingError(f"step {step}: {wrong}; training stopped, {kept} (go on with --on-nan rollback, or begin anew "
                                "with a lower --lr or --clip-norm 1)")
        before, times = self.rolled_back
        self.rolled_back = found.state["step"], times + 1 if before == found.state["step"] else 1
        if self.rolled_back[1] > ROLLBACKS:
            raise TrainingError(f"step {step}: {wrong}, after {ROLLBACKS} rollbacks to step {before}; training stopped, {kept} "
                                "(begin anew with a lower --lr or --clip-norm 1)")
        self.build()
        self.restore(found)
        self.at["batch"] = batch
        if self.leads:
            self.metrics.rewind(self.at["step"])
        self.say(f"step {step}: {wrong}; back to step {self.at['step']}, on with batch {batch}")

    def last_one(self):
        """The last Checkpoint that is whole, or None."""
        try:
            found = checkpoint.find(self.run, self.say)
        except InputError:
            return None
        checkpoint.set_aside(self.run, found)
        return found

    def say(self, line, file=None):
        if self.leads:
            tqdm.write(line, file=file or sys.stderr)  # the bar may be there

    def finish(self):
        """Figure, sample and summary of a run that is done; of one that was stopped, how to go on."""
        s, best = self.settings, self.at["best"]
        if left_out := self.data.left_out():
            self.say(left_out)
        title = f"{s.method}, {self.model.num_parameters() / 1e6:.2f}M parameters"
        summary.draw_loss(self.run, read_metrics(self.metrics.path), title)
        if self.at["step"] == s.steps:
            text = summary.sample(self.model, self.data.tokenizer, s.seed)
            files.write_text(self.run / "sample.txt", text + "\n")
            summary.show(self.run, self.model, self.xp, self.metrics.last, self.tokens_per_second, text, best)
        else:
            print(f"stopped at step {self.at['step']}, saved; go on with: python -m minisl.train --resume "
                  f"{shlex.quote(str(self.run))}")


def refined_schedule(settings, found):
    """For --schedule refined (what a checkpoint keeps of it, the steps' factors): at a resume the other run may be gone, and
    --steps be another number. (None, None) for other schedules."""
    if settings.schedule != "refined":
        return None, None
    path = found.folder / "state.json" if found else Path(settings.norms_of) / "metrics.jsonl"
    kept = found.state.get("schedule") if found else {"grad_norm": [record.get("grad_norm") for record in read_metrics(path)]}
    try:
        return kept, optim.refined(kept.get("grad_norm") if isinstance(kept, dict) else None, settings.steps)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def raise_it(error):
    """Raise an error, where there is one."""
    if error is not None:
        raise error


def pretrain(callbacks=(), **flags):
    """`python -m minisl.train` as a function: flags with underscores, `pretrain(tiny=True, steps=20, out="runs/mine")`.

    callbacks: see `minisl.callbacks`. Returns the run's folder, done or stopped by a callback. Raises InputError for flags that
    cannot be, TrainingError where training cannot go on, and once all is saved KeyboardInterrupt for Ctrl-C, SystemExit for
    SIGTERM.
    """
    open_streams()
    callbacks = checked(callbacks)
    run, number = run_of(settings_from(flags), set(flags), callbacks)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number:
        raise SystemExit(128 + number)
    return run


def run_of(settings, given, callbacks=()):
    """(folder, the signal that stopped it or 0) of the run that is asked for, done or stopped. given: names of the flags."""
    group = join(settings.device)
    with group.guard(), ExitStack() as held:
        run, settings, found = group.first(opened, held, settings, given, group)
        if found and found.state["step"] >= settings.steps:
            print(f"{run}: already at step {found.state['step']} of {settings.steps}; give a larger --steps to go on")
            return run, 0
        keep_freed_memory()
        xp, _ = choose_device(settings.device)
        threads = settings.threads or (group.threads() if group.size > 1 else None)
        with (kernels.running(settings.backend, threads, lambda line: tqdm.write(line, file=sys.stderr), xp,
                              settings.dtype) as on, matmul_precision(settings.matmul_precision, xp)):
            kernels.check_algorithm(settings.algorithm, kernels.of(xp.zeros(0, settings.dtype)))
            trainer = group.together(Trainer, settings, run, found, xp, on, callbacks=callbacks, group=group)
            number = trainer.train()
            if trainer.leads:
                trainer.finish()
        return run, number


def opened(held, settings, given, group):
    """(folder, settings, the Checkpoint to go on from or None). held: an ExitStack that holds the folder while it is open."""
    run = runs.choose(settings)
    flag = "--out" if settings.resume in (None, "auto") else "--resume"
    held.enter_context(alone_in(run, flag, lambda: runs.holds_no_run(run)))
    found = runs.last_checkpoint(run, settings, lambda line: print(line, file=sys.stderr))
    if found:
        auto, settings = settings.resume == "auto", runs.resumed_settings(settings, given, found, run)
        if found.state["step"] >= settings.steps and not auto:
            raise InputError(f"--resume {run}: already at step {found.state['step']} of {settings.steps}; give a larger --steps "
                             "to go on")
    else:
        settings.resolve(given, group.size)  # --resume auto that begins
        settings.batch_size *= group.size
    if settings.batch_size < group.size:
        raise InputError(f"--resume {run}: has {settings.batch_size} sequences a batch, too few for {group.size} processes")
    return run, settings, found


def main(argv):
    group = join()
    with group.guard():
        _, number = run_of(*group.together(parse, argv))
    return 128 + number if number else 0


if __name__ == "__main__":
    restart_with_better_kernels("minisl.train")
    sys.exit(run_command(main))
