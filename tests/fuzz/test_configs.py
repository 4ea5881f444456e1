"""Configs, settings and methods' options that are not what they should be: an InputError, or a model that can be built."""

import json

import pytest
from fuzz_checks import INTS, SCALARS, TEXT, VALUES, accepted, as_json, damaged, edited, examples, must_notice, near, over, wrong
from hypothesis import given
from hypothesis import strategies as st

from minisl import methods
from minisl.config import CONFIG_FOLDERS, Settings, parse
from minisl.nn import Llama, LlamaConfig
from minisl.nn import config as nn_config

REAL = [json.loads(p.read_text()) for p in sorted(next(f for f in CONFIG_FOLDERS if f.is_dir()).glob("*.json"))]
FULL_DOCUMENTS = [*REAL, LlamaConfig.from_dict(REAL[0]).to_dict(), {**REAL[1], "head_dim": 64, "rope_scaling": None}]
KEYS = [*nn_config.LlamaConfig.__dataclass_fields__, *nn_config.REQUIRED, "max_sequence_length", "rope_parameters", "head_dim"]
TINY = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=257)
SETTINGS = [parse(["--tiny", "--method", name])[0].to_dict() for name in methods.available()]
OWN = {name: tuple(methods.flags(name)) for name in methods.available()}

EDGES = {"hidden_size": (2, 16, 2**20, 2**29, 2**31 - 2), "intermediate_size": (1, 32, 2**20, 2**31 - 1),
         "num_hidden_layers": (1, 3, 4096, 4097, 2**31 - 1), "num_attention_heads": (1, 2, 2**28),
         "vocab_size": (1, 257, 2**31 - 1), "max_position_embeddings": (1, 2**31 - 1),
         "rope_theta": (1e-300, 1, 2**31 - 1), "rms_norm_eps": (5e-324, 1.0)}

extremes = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in EDGES.items()})
documents = st.one_of(
    extremes,
    st.sampled_from(FULL_DOCUMENTS).flatmap(edited),
    st.dictionaries(st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS).flatmap(near), TEXT), VALUES, max_size=8),
    st.fixed_dictionaries(dict.fromkeys(KEYS[:4], INTS), optional=dict.fromkeys(KEYS[4:], SCALARS)))


@given(documents)
@examples(100, 5000)
def test_a_config_is_refused_in_a_line_or_gives_a_model(document):
    """Rejects any exception but InputError, and an accepted config of which not even the shapes can be made."""
    check_config(document)


def check_config(document):
    good, config = accepted(LlamaConfig.from_dict, document)
    if good:
        accepted(Llama, config)
        json.dumps(config.to_dict())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("configs") / "config.json"


@st.composite
def with_doubles(draw):
    """A JSON text in which keys are given twice, and values are spelled strangely."""
    pairs = draw(st.lists(st.tuples(st.sampled_from(KEYS), st.one_of(
        VALUES.map(json.dumps), st.sampled_from(("1e400", "-0", "01", "NaN", "+1", "'x'", "[" * 2000, '"\\ud800"', "1" * 5000)))),
        max_size=6))
    return ("{" + ",".join(f'"{k}": {v}' for k, v in [*draw(st.sampled_from(REAL)).items(), *pairs]).replace("'", '"')
            + "}").encode()


@given(content=st.one_of(
    st.binary(max_size=60), st.sampled_from(REAL).map(as_json).flatmap(damaged), VALUES.map(as_json), with_doubles(),
    st.text().map(lambda s: s.encode("utf-16"))))
@examples(100, 3000)
def test_a_config_file_is_refused_by_name_or_gives_a_model(path, content):
    path.write_bytes(content)
    good, config = accepted(LlamaConfig.from_json, path, names=[path] if content[:1] != b"{" else ())
    if good:
        accepted(Llama, config)


settings_documents = st.one_of(
    st.sampled_from(SETTINGS).flatmap(edited),
    st.builds(lambda base, name, value: {**base, name: value}, st.sampled_from(SETTINGS), st.sampled_from(sorted(SETTINGS[0])),
              SCALARS),
    st.dictionaries(TEXT, VALUES, max_size=4))


@given(settings_documents)
@examples(80, 1000)
def test_settings_of_a_state_are_refused_in_a_line_or_make_a_method(document):
    good, settings = accepted(Settings.from_dict, document)
    if good:
        accepted(methods.Method, settings.method, settings.to_dict())


@st.composite
def method_options(draw):
    """A method's name, and settings in which its own are anything."""
    name = draw(st.sampled_from(methods.available()))
    base = draw(st.sampled_from(SETTINGS))
    own = draw(st.dictionaries(st.sampled_from((*OWN[name], "rank", "delta", "alpha", "learned_scale", "algorithm", "colour")),
                               st.one_of(SCALARS, st.floats(0, 1), VALUES), max_size=3))
    if draw(st.booleans()):
        return name, base | {"method_options": draw(st.one_of(st.just(own), VALUES))}
    return draw(st.one_of(st.just(name), st.just(name), TEXT)), draw(st.one_of(st.just({**base, **own}), st.just(own)))


@given(method_options())
@examples(80, 2000)
def test_options_of_a_method_are_refused_in_a_line_or_build_it(drawn):
    name, document = drawn
    good, method = accepted(methods.Method, name, document)
    if good:
        good, model = accepted(method.build, TINY)
    if good:
        accepted(lambda: method.optimizer(model, 1e-3).check())


@wrong((LlamaConfig.__post_init__, "type(value) not in allowed", "False"),
       (LlamaConfig.from_dict.__func__, "if missing:", "if False:"))
def test_rejects_a_config(mutant, killed):
    must_notice(mutant, test_a_config_is_refused_in_a_line_or_gives_a_model, killed)


@wrong((LlamaConfig.__post_init__, ">= 2**59", ">= 2**99"))
def test_rejects_extremes(mutant, killed):
    must_notice(mutant, lambda: over(extremes, check_config), killed)


@wrong((nn_config.read_json, "(ValueError, RecursionError)", "RecursionError"),
       (nn_config.read_json, "not isinstance(value, dict)", "False"))
def test_rejects_a_config_file(mutant, path, killed):
    must_notice(mutant, lambda: test_a_config_file_is_refused_by_name_or_gives_a_model(path=path), killed)


@wrong((Settings.check, "not isinstance(self.method_options, dict)", "False"),
       (Settings.check_values, "isinstance(value, int | float if f.type is float else f.type)", "True"),
       (Settings.from_dict.__func__, "unknown := sorted(given.keys() - names)", "unknown := []"))
def test_rejects_settings(mutant, killed):
    must_notice(mutant, test_settings_of_a_state_are_refused_in_a_line_or_make_a_method, killed)


@wrong((methods.Method.__init__, "not isinstance(more, dict)", "False"),
       (methods.Method.__init__, "missing := [o for o in shared if o not in given]", "missing := []"),
       (methods.Flag.check, "type(value) is not kind", "False"))
def test_rejects_options(mutant, killed):
    must_notice(mutant, test_options_of_a_method_are_refused_in_a_line_or_build_it, killed)
