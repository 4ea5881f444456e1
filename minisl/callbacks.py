"""Who watches a training run: objects with any of

    on_step(record)     after every update; record is what goes to metrics.jsonl: step, loss, lr, tokens, ...
    on_eval(record)     after an evaluation; that step's record, val_loss, bits_per_byte and perplexity in it
    on_save(path)       after a checkpoint is complete; its folder, a Path
    close()             once, when training ends, however it ends

A record is the callback's own copy. An exception of a callback does not cost the run: it is said in one line on stderr, and that
callback is not called again (but closed). One that wants no further training raises `Stop`: as after Ctrl-C the step is finished
and saved.
"""

import inspect
import sys
import time
import weakref

from minisl.errors import InputError

EVENTS = {"on_step": "record", "on_eval": "record", "on_save": "path"}  # and what each is called with


class Stop(Exception):
    """Raised by a callback: train no further."""


class Callbacks:
    """What a training loop calls: `tell(event, what)` calls that method of all who have it, in their order.

    stopped: the words of whoever raised Stop, else None. Raises InputError for one that would never be called: see `checked`.
    """

    def __init__(self, callbacks=(), say=None):
        """say: is told, in a line, what went wrong (left out: stderr)."""
        self.callbacks, self.failed, self.stopped = checked(callbacks), [], None
        self.say = say or (lambda line: print(line, file=sys.stderr))

    def tell(self, event, what):
        if event not in EVENTS:
            raise InputError(f"{event!r} is no event; there are: {', '.join(EVENTS)}")
        for callback in [c for c in self.callbacks if not any(c is f for f in self.failed)]:
            if self.call(callback, event, dict(what) if isinstance(what, dict) else what):
                self.failed.append(callback)

    def call(self, callback, event, *what):
        """True if it failed."""
        try:
            if method := getattr(callback, event, None):
                method(*what)
        except Stop as stop:
            self.stopped = str(stop) or type(callback).__name__
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            self.say(f"callback {type(callback).__name__}.{event} failed and is not called again ({why})")
            return True

    def close(self):
        """Call everybody's `close`, also of those that failed."""
        for callback in self.callbacks:
            self.call(callback, "close")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def checked(callbacks):
    """Callbacks as a list. Raises InputError: no list, a class, a misspelt or missing method, one that takes other arguments."""
    if not isinstance(callbacks, list | tuple):
        raise InputError(f"callbacks: must be a list of objects, such as [LivePlot()]; {callbacks!r} is none")
    for one in callbacks:
        name = one.__name__ if isinstance(one, type) else type(one).__name__
        if isinstance(one, type):
            raise InputError(f"callback {name} is a class; give an object, {name}(...)")
        hooks = [hook for hook in dir(one) if hook.startswith("on_") or hook == "close"]
        if unknown := [hook for hook in hooks if hook not in (*EVENTS, "close")]:
            raise InputError(f"callback {name}: {unknown[0]} is never called; allowed: {', '.join(EVENTS)}, close")
        if not hooks:
            raise InputError(f"callback {name} has none of {', '.join(EVENTS)}, close")
        for hook in hooks:
            takes = [EVENTS[hook]] if hook in EVENTS else []
            if not accepts(getattr(one, hook), takes):
                raise InputError(f"callback {name}: {hook} must be a method that can be called as {hook}({', '.join(takes)})")
    return list(callbacks)


def accepts(function, arguments):
    """Whether a function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:  # also of what is no function
        return False
    except ValueError:  # one that does not say what it takes
        pass
    return True


class TensorBoard:
    """Every number of a record as a scalar of that name, in an event file in `folder`: look with `tensorboard --logdir folder`.

    A resumed run may write into the same folder: steps that it does again replace those of before. Raises InputError where the
    package tensorboard is missing (`pip install 'minisl[tensorboard]'`).
    """

    def __init__(self, folder):
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise InputError(f"TensorBoard: {error}; fix: pip install 'minisl[tensorboard]'") from None
        self.Event, self.SessionLog, self.Summary = event_pb2.Event, event_pb2.SessionLog, summary_pb2.Summary
        self.writer, self.written = EventFileWriter(str(folder), flush_secs=10), (None, set())
        weakref.finalize(self, self.writer.close)  # where nobody calls close

    def on_step(self, record):
        self.write(record)

    def on_eval(self, record):
        self.write(record)
        self.writer.flush()

    def on_save(self, path):
        self.writer.flush()

    def close(self):
        self.writer.close()

    def write(self, record):
        """The record's numbers, but not again those that were written at this step."""
        step, (last, names) = record["step"], self.written
        if last is None:  # what the folder has from this step on belongs to work that is done again
            self.add(step, session_log=self.SessionLog(status=self.SessionLog.START))
        names = names if step == last else set()
        new = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step" and k not in names}
        if new:
            self.add(step, summary=self.Summary(value=[self.Summary.Value(tag=k, simple_value=v) for k, v in new.items()]))
        self.written = step, names | set(new)

    def add(self, step, **what):
        self.writer.add_event(self.Event(wall_time=time.time(), step=step, **what))


class LivePlot:
    """The loss so far in a notebook, drawn anew in the same place, at most every `every` seconds.

    path: a file to draw to as well, which works everywhere. Outside a notebook and without a path nothing is drawn.
    display: `display(png)` shows the bytes of a picture and returns a function that replaces it (left out: the notebook's).
    """

    def __init__(self, path=None, every=1.0, title="", display=None):
        self.path, self.every, self.title = path, every, title
        self.display, self.replace = display or notebook_display(), None
        self.records, self.drawn, self.shown = [], -float("inf"), 0

    def on_step(self, record):
        self.records.append(record)
        if time.monotonic() - self.drawn >= self.every:
            self.draw()

    def on_eval(self, record):
        if self.records and self.records[-1]["step"] == record["step"]:
            self.records[-1] = record
        else:
            self.records.append(record)
        self.shown = 0

    def close(self):
        """Draw what came since the last time."""
        if self.shown != len(self.records):
            self.draw()

    def draw(self):
        if not self.records or not (self.display or self.path):
            return
        png = loss_png(self.records, self.title)
        if self.path:
            from minisl.files import replacing

            with replacing(self.path) as [temporary]:
                temporary.write_bytes(png)
        if self.replace:
            self.replace(png)
        elif self.display:
            self.replace = self.display(png)
        self.drawn, self.shown = time.monotonic(), len(self.records)


def notebook_display():
    """For `LivePlot`, where this runs in a notebook; else None."""
    ipython = sys.modules.get("IPython")  # a notebook's kernel has it loaded
    shell = ipython.get_ipython() if ipython else None
    if not hasattr(shell, "kernel"):  # a terminal shows no pictures
        return None
    from IPython.display import Image, display

    def show(png):
        handle = display(Image(png), display_id=True)
        return lambda png: handle.update(Image(png))

    return show


def loss_png(records, title, most=400):
    """A picture of training and validation loss against steps, as bytes. Of more than `most` updates, means of neighbours."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trained = [(r["step"], r["loss"]) for r in records if "loss" in r]
    group = -(-len(trained) // most) or 1
    parts = [trained[i:i + group] for i in range(0, len(trained), group)]
    checks = [(r["step"], r["val_loss"]) for r in records if "val_loss" in r]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")  # not pyplot's, which would keep it
    axes = figure.subplots()
    axes.plot([part[-1][0] for part in parts], [sum(loss for _, loss in part) / len(part) for part in parts], color="#0072B2",
              label="training")
    if checks:
        axes.plot(*zip(*checks), "o-", color="#D55E00", label="validation")
    last = records[-1]
    words = [f"step {last['step']:,}", *(f"{k.replace('_', ' ')} {last[k]:.3f}" for k in ("loss", "val_loss") if k in last)]
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=", ".join(filter(None, [title, *words])))
    axes.legend(frameon=False)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
