"""Grammars: none ends the process, hangs it or prints, and a dead end has its reason."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from streamsink.core.events import Step
from streamsink.core.sampling import Sampling
from streamsink.engine.stream import Stream
from streamsink.errors import LogitsError, ModelError, UsageError
from streamsink.llama import gbnf
from streamsink.llama import grammar as native_grammar
from streamsink.llama.grammar import Grammar
from streamsink.llama.weights import Weights
from streamsink.model import Model
from tests.tiny_gguf import TinyModel, vocabulary

DEEP = 20_000
N_CTX = 256
TOKENS = vocabulary()


@pytest.fixture
def stream(model: Model) -> Iterator[Stream]:
    with model.stream(n_ctx=N_CTX, threads=1) as opened:
        opened.feed("Hello there")
        yield opened


def follow(stream: Stream, grammar: str, max_tokens: int = 60, seed: int = 1) -> list[Step]:
    return list(stream.generate(max_tokens, sampling=Sampling(seed=seed, grammar=grammar)))


def said(steps: list[Step]) -> tuple[str, str | None]:
    return "".join(step.text for step in steps), steps[-1].finish


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('root ::= "yes"', "yes"),
        ('root ::= "a"{3}', "aaa"),
        ('root ::= x "!" # a comment with "\nx ::= [b-b]', "b!"),
        ('root ::= ("é" | "é") "日本"', "é日本"),
        ('root ::= "a" x\nx ::= ', "a"),
        ('root ::= ""', ""),
        ('root ::= [] "a" [^]', "a"),
        ('root ::= "\\"[^.]" [-] [\\]]', '"[^.]-]'),
        (f'root ::= {"(" * gbnf.MOST_DEPTH} "a" {")" * gbnf.MOST_DEPTH}', "a"),
        ('root ::= x* "z"\nx ::= y\ny ::= [b-a]?', "z"),
        (f"root ::= <[{TOKENS.index('J')}]> <[{TOKENS.index('K')}]>", "JK"),
    ],
)
def test_a_text_that_ends_where_its_grammar_ends(stream: Stream, grammar: str, text: str) -> None:
    found, finish = said(follow(stream, grammar))
    assert (found, finish) == (text, "eos")


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('root ::= "abc" "\\x00" "a"', "abc"),
        ('root ::= "ab" [^\\x00-\\U0010FFFF]', "ab"),
        ('root ::= "a" [c-b]+', "a"),
        ('root ::= "xy" x\nx ::= "\\x00" x | "\\x00"', "xy"),
    ],
)
def test_a_dead_end_ends_the_generation(stream: Stream, grammar: str, text: str) -> None:
    found, finish = said(follow(stream, grammar))
    assert (found, finish) == (text, "grammar")
    # It goes on from there.
    stream.feed("more")
    assert said(follow(stream, 'root ::= "yes"')) == ("yes", "eos")


def test_a_dead_end_within_a_stop_string_or_at_the_last_token(stream: Stream) -> None:
    sampling = Sampling(grammar='root ::= "ab" "\\x00"')
    assert said(list(stream.generate(9, ["b"], sampling))) == ("a", "stop")
    assert said(list(stream.generate(2, (), sampling))) == ("ab", "grammar")
    assert said(list(stream.generate(1, (), sampling))) == ("a", "length")


REFUSED_BY_READING = [
    ("root ::= [", "not GBNF"),
    ("root", "not GBNF"),
    ("# nothing", "no rule named root"),
    ('a ::= "b"', "no rule named root"),
    ("root ::= x", "names x"),
    ('root ::= (("a")', "not closed"),
    ('root ::= ("a"\nx ::= "b")', "not closed"),
    ('root ::= "a")', "too many"),
    ("root ::= *", "nothing before"),
    # Left recursion, seen by llama.cpp, and not seen.
    ('root ::= root "a" | "a"', "root may begin with itself"),
    ('root ::= x "a" | "a"\nx ::= y\ny ::= root "b"', "by way of"),
    ('root ::= x root "z" | "w"\nx ::= y\ny ::= "k"?', "root may begin with itself"),
    ('root ::= "q" x\nx ::= e* x "z" | "w"\ne ::= "k"', "x may begin with itself"),
    ('root ::= "q" x\nx ::= e y\ny ::= e x\ne ::= d\nd ::= ""', "may begin with itself"),
    # A token behind text: both may lie in one token, which llama.cpp admits and cannot accept.
    ("root ::= [a-z]* <[9]>", "a token <…> may follow text"),
    ('root ::= x* y\nx ::= "t"\ny ::= z?\nz ::= !<[9]>', "a token <…> may follow text"),
    ('root ::= (<[9]> "a")*', "a token <…> may follow text"),
    # Size and depth.
    ('root ::= "a"{1000000}', "more than 2000 times"),
    ('root ::= "a"{0,1000000}', "more than 2000 times"),
    (f'root ::= "a"{{{"9" * 5000}}}', "more than 2000 times"),
    ('root ::= "a"{3,1}', "ends before it begins"),
    ('root ::= "abcdefghijklmnopqrstuvwxyzabcdef"{2000}', "elements"),
    (f'root ::= {"(" * DEEP} "a" {")" * DEEP}', "nested more than 100 deep"),
]
CHAIN = "".join(f"r{at} ::= r{at + 1}\n" for at in range(100_000))


@pytest.mark.parametrize(("grammar", "why"), REFUSED_BY_READING)
def test_what_is_refused_by_reading(grammar: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        gbnf.check(grammar)


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        *REFUSED_BY_READING[-4::3],
        ("", "empty"),
        (" \n\t", "empty"),
        ('root ::= "\\q"', "not GBNF: unknown escape"),
        ('root ::= "\\x0"', "not GBNF: .*hex"),
        ('root ::= "a\0b"', "character 0"),
        ('root ::= "\ud800"', "not Unicode"),
        ('root ::= "\\x00" "a"', "admits no token"),
        ("root ::= [^\\x00-\\U0010FFFF]", "admits no token"),
        ("root ::= [b-a]", "admits no token"),
        ('root ::= "ab" [\\U00110000-\\U001FFFFF]', "U00110000 is no character"),
        ("root ::= <[999999]>", "admits no token"),
        ("root ::= <[99999999999999999999999]>", "not GBNF"),
        ("root ::= <no such token>", "not GBNF: invalid token"),
        (f'root ::= {"(" * 100_000} "a" {")" * 100_000}', "nested more"),
        (CHAIN + "root ::= r0", "bytes"),
        ("root ::= r0\n" + "".join(CHAIN.splitlines(True)[:10_000]) + 'r10000 ::= "a"', "too deep"),
        ("root ::= " + " | ".join(f'"{at}"' for at in range(100_000)), "bytes"),
    ],
)
def test_what_cannot_be_followed_is_refused(stream: Stream, grammar: str, why: str) -> None:
    n_fed = stream.stats.index
    with pytest.raises(UsageError, match=why) as caught:
        follow(stream, grammar)
    assert len(str(caught.value)) < 300
    assert stream.stats.index == n_fed


@pytest.mark.parametrize(
    "grammar",
    [
        # The search for left recursion visits each rule anew by every way.
        "root ::= r0\n"
        + "".join(f"r{at} ::= r{at + 1} | r{at + 1}\n" for at in range(40))
        + 'r40 ::= "a"',
        # Twice as many ways to go on after every character.
        'root ::= "a" root "b" | "a" root "c" | "a"',
        'root ::= "(" x\nx ::= [a-z] x "b" | [a-z] x "c" | "."',
    ],
)
def test_what_never_ends_is_refused(
    stream: Stream, grammar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_grammar, "SECONDS", 1.0)
    begun = time.monotonic()
    with pytest.raises(UsageError, match=r"too ambiguous.*no answer"):
        follow(stream, grammar)
    assert time.monotonic() - begun < 20


def test_a_grammar_that_gets_too_slow_in_mid_text(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the trial did not come by ends as a dead end does."""
    vocabulary = model._weights.tokenizer
    monkeypatch.setattr(native_grammar, "SLOWEST", 0.02)
    grammar = Grammar(vocabulary, 'root ::= "a" root "b" | "a" root "c" | "a"')
    token = vocabulary.tokenize("a")[0]
    for _ in range(40):
        if token not in grammar.admitted:
            break
        grammar.accept(token)
    assert not grammar.admitted.size


def test_nothing_is_printed(
    stream: Stream, capfd: pytest.CaptureFixture[str], model: Model
) -> None:
    for grammar in ('root ::= "\\q"', "root ::= <no such token>", 'root ::= "ab" "\\x00"'):
        with contextlib.suppress(UsageError):
            follow(stream, grammar)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_the_trial_can_be_interrupted(stream: Stream) -> None:
    threading.Timer(0.4, lambda: signal.raise_signal(signal.SIGINT)).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        follow(stream, 'root ::= "a" root "x" | "a" root "y" | "a"')
    assert time.monotonic() - begun < 3
    assert said(follow(stream, 'root ::= "yes"')) == ("yes", "eos")


def test_a_grammar_is_tried_once(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = 'root ::= "once" | "only"', 'root ::= "once" | only'
    follow(stream, good)
    with pytest.raises(UsageError, match="names only"):
        follow(stream, bad)
    monkeypatch.setattr(native_grammar, "CHECKER", "no such module")
    follow(stream, good)
    with pytest.raises(UsageError, match="names only"):
        follow(stream, bad)
    with pytest.raises(ModelError, match="cannot be tried"):
        follow(stream, good + " ")


def test_a_vocabulary_without_an_end(model: Model) -> None:
    """The text is complete, and no token can say so."""
    vocabulary = model._weights.tokenizer
    words = [t for t in range(vocabulary.n_tokens) if not vocabulary.is_eog(t)]
    grammar = Grammar(vocabulary, 'root ::= "a"', only=words)
    (token,) = grammar.admitted.tolist()
    grammar.accept(token)
    assert not grammar.admitted.size


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0), Sampling(), Sampling(grammar="root ::= .*")],
    ids=["greedy", "drawn", "grammar"],
)
def test_logits_that_are_no_numbers(stream: Stream, sampling: Sampling, number: float) -> None:
    steps = stream.generate(9, sampling=sampling)
    next(steps)
    backend = stream._context
    decode = backend.decode

    def spoil(*arguments: object) -> None:
        decode(*arguments)  # type: ignore[arg-type]
        backend.logits()[-1][200] = number

    backend.decode = spoil  # type: ignore[method-assign, assignment]
    n_fed = stream.stats.index
    with pytest.raises(LogitsError, match="cache_type_k='f16'"):
        next(steps)
    assert stream.stats.index == n_fed
    backend.decode = decode  # type: ignore[method-assign]
    stream.feed("more")
    assert len(list(stream.generate(2, sampling=Sampling(), ignore_eos=True))) == 2


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    tiny = TinyModel.create()
    tiny.weights["output.weight"][7, 7] = np.nan
    with Model(Weights(tiny.write(tmp_path / "nan.gguf"), 0)) as model:
        for sampling in (Sampling(), Sampling(temperature=0), Sampling(grammar="root ::= .*")):
            with model.stream(n_ctx=N_CTX, threads=1) as stream:
                stream.feed("Hello")
                with pytest.raises(LogitsError):
                    next(stream.generate(sampling=sampling))


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-38, 1e-20, 1e-5, 1.1e-4])
def test_a_temperature_next_to_nothing_takes_the_likeliest(
    stream: Stream, temperature: float
) -> None:
    likeliest = int(stream.logits().argmax())
    for seed in range(3):
        sampling = Sampling(temperature=temperature, seed=seed, top_k=0, min_p=0, top_p=1)
        assert next(stream.generate(1, sampling=sampling)).token == likeliest
        stream.rewind(stream.stats.index - 1)


GRAMMARS = [
    'root ::= ("yes" | "no" | "maybe so") "." root?',
    "root ::= [a-f]+ [0-9] root",
    'root ::= "{" ws "x" ws ":" ws [0-9]{1,9} "}"\nws ::= [ \\t\\n]*',
    "root ::= ([A-Z] [a-z]+ [ ,])+",
]


def test_threads_with_grammars_say_what_each_says_alone(model: Model) -> None:
    def texts(at: int) -> list[str]:
        with model.stream(n_ctx=N_CTX, threads=1) as stream:
            stream.feed(f"Number {at}")
            return [said(follow(stream, GRAMMARS[at], 30, seed))[0] for seed in range(6)]

    stderr = os.fstat(2)
    alone = [texts(at) for at in range(len(GRAMMARS))]
    native_grammar._verdict.cache_clear()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(len(GRAMMARS)) as pool:
            assert list(pool.map(texts, range(len(GRAMMARS)))) == alone
    finally:
        sys.setswitchinterval(before)
    assert os.path.samestat(os.fstat(2), stderr)


def test_threads_with_bad_grammars_each_get_their_own_reason(model: Model) -> None:
    bad = {
        'root ::= "\\q1"': r"\\q1",
        "root ::= <no such token>": "no such",
        'root ::= "\\x0z"': "hex",
        "root ::= elsewhere": "elsewhere",
    }

    def reason(grammar: str) -> str:
        with model.stream(n_ctx=N_CTX, threads=1) as stream:
            stream.feed("x")
            with pytest.raises(UsageError) as caught:
                follow(stream, grammar)
            return str(caught.value)

    with ThreadPoolExecutor(4) as pool:
        for why, found in zip(bad.values(), pool.map(reason, bad), strict=True):
            assert why.replace("\\\\", "\\") in found
