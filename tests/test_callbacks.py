"""Callbacks: who is called with what, what a failing one costs, TensorBoard's files read back, the plot on a fake display."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mutation import mutant_tests

from minisl import callbacks, train
from minisl.callbacks import Callbacks, LivePlot, Stop, TensorBoard, loss_png
from minisl.errors import InputError

RECORDS = [{"step": s, "loss": 6 / s, "lr": 0.1, "tokens": 10 * s} for s in range(1, 6)]
EVAL = {**RECORDS[-1], "val_loss": 1.5, "bits_per_byte": 2.25, "perplexity": math.exp(1.5)}
PNG = b"\x89PNG\r\n\x1a\n"


class Watcher:
    """Writes down its calls; in some of them raises."""

    def __init__(self, raises=None):
        self.calls, self.raises = [], raises or {}

    def note(self, event, *what):
        self.calls.append((event, *what))
        if event in self.raises:
            raise self.raises[event]

    def on_step(self, record):
        self.note("on_step", record)
        record["loss"] = None  # its own copy

    def on_save(self, path):
        self.note("on_save", path)

    def close(self):
        self.note("close")


def check_calls():
    """Each event to all who have a method for it, in order; a record that one of them writes to is not the others'."""
    lines, a, b, nothing = [], Watcher(), Watcher(), SimpleNamespace(close=lambda: None)
    record = dict(RECORDS[0])
    with Callbacks([a, nothing, b], lines.append) as watchers:
        watchers.tell("on_step", record)
        watchers.tell("on_eval", EVAL)
        watchers.tell("on_save", Path("x"))
    assert record == RECORDS[0]
    assert [c[0] for c in a.calls] == [c[0] for c in b.calls] == ["on_step", "on_save", "close"]
    assert b.calls[1] == ("on_save", Path("x"))
    assert (lines, watchers.stopped) == ([], None)


def check_failure():
    """One line, the others go on, no further call but close; what a `close` raises is said too. Ctrl-C is no failure."""
    lines, bad, good = [], Watcher({"on_step": ValueError("no\nmore"), "close": OSError("full")}), Watcher()
    watchers = Callbacks([bad, good], lines.append)
    for record in RECORDS:
        watchers.tell("on_step", record)
    watchers.tell("on_save", Path("x"))
    watchers.close()
    assert [c[0] for c in bad.calls] == ["on_step", "close"]
    assert [c[0] for c in good.calls] == ["on_step"] * 5 + ["on_save", "close"]
    assert lines == ["callback Watcher.on_step failed and is not called again (ValueError: no more)",
                     "callback Watcher.close failed and is not called again (OSError: full)"]
    assert watchers.stopped is None
    with pytest.raises(KeyboardInterrupt):
        Callbacks([Watcher({"on_step": KeyboardInterrupt()})]).tell("on_step", RECORDS[0])


def check_stop():
    lines, first, second = [], Watcher({"on_save": Stop("good enough")}), Watcher()
    watchers = Callbacks([first, second], lines.append)
    watchers.tell("on_save", Path("x"))
    watchers.tell("on_step", RECORDS[0])
    assert watchers.stopped == "good enough"
    assert [len(w.calls) for w in (first, second)] == [2, 2]
    assert lines == []


def drawn(times, every=1.0):
    """At which of the steps, made at these times, a plot was shown first and replaced later."""
    shown, clock = [], SimpleNamespace(monotonic=lambda: now[0])
    now, right = [0.0], (callbacks.time, callbacks.loss_png)

    def display(png):
        assert png.startswith(PNG)
        shown.append(("new", now[0]))
        return lambda png: shown.append(("again", now[0]))

    callbacks.time, callbacks.loss_png = clock, lambda records, title: PNG
    try:
        plot = LivePlot(every=every, display=display)
        for step, now[0] in enumerate(times, 1):
            plot.on_step({"step": step, "loss": 1 / step})
        plot.close()
    finally:
        callbacks.time, callbacks.loss_png = right
    return shown


def check_plot():
    """In one place, at most once a second, and at the end what was not shown yet."""
    assert drawn([0, 0.4, 0.9, 1.0, 1.5, 2.5]) == [("new", 0), ("again", 1.0), ("again", 2.5)]
    assert drawn([0, 0.4]) == [("new", 0), ("again", 0.4)]
    assert drawn([7]) == [("new", 7)]
    plot = LivePlot(display=lambda png: shown.append(png))
    shown = []
    plot.on_eval(EVAL)
    plot.close()
    assert len(shown) == 1
    plot = LivePlot()  # not in a notebook: nothing
    plot.on_step(RECORDS[0])
    plot.close()


def calling(**hooks):
    """An object with these methods."""
    return type("Print", (), hooks)()


def check_what_would_never_be_called():
    """No list, a class, a misspelt method, none at all, one that takes other arguments; an event that nobody has."""
    def one(self, record):
        pass

    for wrong, words in [
        (calling(on_step=one), "must be a list of objects"), (None, "must be a list"), ("on_step", "must be a list"),
        (type(calling(on_step=one)), "must be a list"), ([type(calling(on_step=one))], "Print is a class; give an object"),
        ([calling(on_step=one, on_stpe=one)], "on_stpe is never called; allowed: on_step"), ([calling(on_close=one)], "on_close"),
        ([calling(step=one)], "has none of on_step"), ([print], "has none of on_step"),
        ([calling(on_step=lambda self: None)], r"can be called as on_step\(record\)"), ([calling(on_save=5)], r"on_save\(path\)"),
        ([calling(on_eval=lambda self, record, more: None)], r"on_eval\(record\)"), ([calling(close=one)], r"close\(\)")]:
        with pytest.raises(InputError, match=words):
            Callbacks(wrong)
    Callbacks((calling(on_step=one), calling(on_eval=lambda *_: None), calling(on_save=lambda self, path, more=1: None)))
    Callbacks([calling(on_step=print), calling(on_step=[].append)])  # which do not say what they take, or take one
    with pytest.raises(InputError, match="'on_stpe' is no event; there are: on_step"):
        Callbacks().tell("on_stpe", RECORDS[0])


CHECKS = (check_calls, check_failure, check_stop, check_plot, check_what_would_never_be_called)


@pytest.mark.parametrize("check", CHECKS)
def test_callbacks(check):
    check()


def test_plot_in_a_file(tmp_path):
    plot = LivePlot(tmp_path / "loss.png")
    for record in RECORDS:
        plot.on_step(record)
    plot.on_eval(EVAL)
    plot.close()
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
    assert plot.records[-1]["val_loss"] == 1.5
    assert len(plot.records) == 5


def test_plot_of_many_steps_is_of_means(monkeypatch):
    from matplotlib.axes import Axes

    seen, right = [], Axes.plot

    def plot(self, x, y, *style, **more):
        seen.append((list(x), list(y)))
        return right(self, x, y, *style, **more)

    monkeypatch.setattr(Axes, "plot", plot)
    loss_png([{"step": s, "loss": s % 2} for s in range(1, 1001)], "", most=100)
    [(x, y)] = seen
    assert x == list(range(10, 1001, 10))
    assert set(y) == {0.5}


def test_notebook_display_shows_and_replaces(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda image: shown.append(("update", image)))
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1))
    module = SimpleNamespace(Image=lambda data: ("image", data),
                             display=lambda image, display_id: shown.append(("display", image)) or handle)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    callbacks.notebook_display()(b"1")(b"2")
    assert shown == [("display", ("image", b"1")), ("update", ("image", b"2"))]
    ipython.get_ipython = lambda: SimpleNamespace()  # a terminal
    assert callbacks.notebook_display() is None


def scalars(folder):
    """tag -> [(step, value)], as TensorBoard reads them."""
    pytest.importorskip("tensorboard", reason="pip install 'minisl[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def check_tensorboard(folder):
    """Every number of every record, once, at its step."""
    board = TensorBoard(folder)
    for record in RECORDS:
        board.on_step(record)
    board.on_eval(EVAL)
    assert scalars(folder)["val_loss"] == [(5, 1.5)]  # there before it is closed
    board.on_step({**RECORDS[-1], "step": 6})
    board.on_save(folder)
    assert scalars(folder)["loss"][-1][0] == 6
    board.close()
    found = scalars(folder)
    assert found.keys() == {"loss", "lr", "tokens", "val_loss", "bits_per_byte", "perplexity"}
    assert found["loss"] == [(r["step"], pytest.approx(r["loss"])) for r in (*RECORDS, {**RECORDS[-1], "step": 6})]
    assert found["bits_per_byte"] == [(5, 2.25)]


def check_resumed(folder):
    """A second run from step 4 on into the same folder replaces what the first had from there."""
    for records, factor in ((RECORDS, 1), (RECORDS[3:], 10)):
        board = TensorBoard(folder)
        for record in records:
            board.on_step({**record, "loss": factor * record["loss"]})
        board.close()
    assert scalars(folder)["loss"] == [(r["step"], pytest.approx(r["loss"] * (10 if r["step"] > 3 else 1))) for r in RECORDS]


@pytest.mark.parametrize("check", [check_tensorboard, check_resumed])
def test_tensorboard(tmp_path, check):
    pytest.importorskip("tensorboard", reason="pip install 'minisl[tensorboard]'")
    check(tmp_path)


def test_without_tensorboard_is_one_line(tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'minisl\[tensorboard\]'"):
        TensorBoard(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_callback_that_is_no_list_is_said_before_the_run_has_a_folder(tmp_path):
    with pytest.raises(InputError, match="must be a list"):
        train.pretrain(tiny=True, out=str(tmp_path / "run"), callbacks=Watcher())
    assert not (tmp_path / "run").exists()


test_mutants = mutant_tests([
    (callbacks.accepts, "return False", "return True"), (callbacks.checked, "if not hooks:", "if False:"),
    (callbacks.checked, "(*EVENTS, \"close\")", "hooks"), (callbacks.checked, "if isinstance(one, type):", "if False:"),
    (Callbacks.tell, "dict(what) if", "what if"), (Callbacks.tell, "self.failed.append(callback)", "pass"),
    (Callbacks.call, "except Stop as stop:", "except ZeroDivisionError as stop:"),
    (Callbacks.call, "except Exception as", "except OSError as"),
    (Callbacks.call, "except Exception as", "except BaseException as"), (Callbacks.call, "return True", "raise"),
    (Callbacks.close, "in self.callbacks", "in [c for c in self.callbacks if c not in self.failed]"),
    (LivePlot.on_step, ">= self.every", "> self.every"), (LivePlot.on_step, "if time", "if True or time"),
    (LivePlot.draw, "if self.replace:", "if False:"), (LivePlot.close, "self.shown != len(self.records)", "False"),
    (LivePlot.close, "self.shown != len(self.records)", "True"), (LivePlot.on_eval, "self.records.append(record)", "pass"),
], *CHECKS)


@pytest.mark.parametrize(("function", "old", "new"), [
    (TensorBoard.write, "if last is None:", "if False:"), (TensorBoard.write, "k not in names", "True"),
    (TensorBoard.write, "names if step == last else set()", "names"), (TensorBoard.on_eval, "self.write(record)", "pass"),
    (TensorBoard.write, "self.written = step, names | set(new)", "self.written = step, set()"),
    (TensorBoard.add, "step=step", "step=0"),
])
def test_tensorboard_mutants(tmp_path, killed, function, old, new):
    pytest.importorskip("tensorboard", reason="pip install 'minisl[tensorboard]'")
    from mutation import mutated, rejected, title

    def checks(name):
        return [lambda check=check: check(tmp_path / name / check.__name__) for check in (check_tensorboard, check_resumed)]

    with mutated(function, old, new):
        killed[title(function, old, new)] = rejected(checks("wrong"))
    assert killed[title(function, old, new)]
    assert not rejected(checks("right"))
