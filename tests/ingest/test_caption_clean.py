import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.caption_clean import CAPTION_CHARS, Clean, script_share

WORDS = st.sampled_from(
    ["The video shows", "two dogs", "https://a.b/c", "x@y.org", "Caption:", "In this video,", '"',
     "we can see", "größe", "\x00", "\n", "собака", ".", "The image depicts that", "www.a.de", "Sure! Here is a caption:"]
)  # fmt: skip


@given(
    st.lists(WORDS | st.text(max_size=6), max_size=12).map(" ".join), st.sampled_from([3, 40, 2000])
)
@example('" " The video shows', 3)
def test_clean_is_clean(text, max_chars):
    rules = Clean(max_chars=max_chars)
    once = rules.apply(text)
    assert rules.apply(once.text).text == once.text
    assert len(once.text) <= max_chars
    assert once.text.isprintable()
    assert once.text == " ".join(once.text.split())
    assert "://a" not in once.text
    assert "@y.org" not in once.text
    assert bool(once.refused) == (not once.text)


@pytest.mark.parametrize(
    ("text", "clean", "rules"),
    [
        ("two dogs run", "two dogs run", ()),
        ("The video shows two dogs running.", "Two dogs running.", ("prefix",)),
        ("this short video clip depicts a cat", "a cat", ("prefix",)),
        ("In this video, we can see a man cooking", "A man cooking", ("prefix",)),
        ("Sure! Here is a short description of the clip: A cat.", "A cat.", ("prefix",)),
        ('Caption: "A red car"', "A red car", ("prefix",)),
        ("The video shows", "The video shows", ()),
        ("a video shop in a street", "a video shop in a street", ()),
        ("“Two dogs”", "Two dogs", ("prefix",)),
        ('"Go" and "stop" signs', '"Go" and "stop" signs', ()),
        ("a cat https://x.y/z?a=b more", "a cat more", ("url", "whitespace")),
        ("write to me.too@mail.example.org now", "write to now", ("email", "whitespace")),
        ("a\x00cat", "a cat", ("control",)),
        ("a  cat\n runs", "a cat runs", ("whitespace",)),
    ],
)
def test_rules_by_example(text, clean, rules):
    found = Clean().apply(text)
    assert found.text == clean
    assert set(rules) <= set(found.rules)


def test_what_is_refused_and_switched_off():
    assert Clean().apply(" \n").refused == "empty"
    assert Clean().apply("https://a.b").refused == "empty"
    assert Clean(min_chars=4).apply("cat").refused == "short"
    latin = Clean(scripts=("latin",), min_script_share=0.6)
    assert latin.apply("две собаки run").refused == "language"
    assert latin.apply("two dogs, 3!").text == "two dogs, 3!"
    assert latin.apply("123").refused == ""
    assert script_share("日本 ab", ("cjk",)) == 0.5
    assert Clean(prefixes=False).apply("The video shows a cat").text == "The video shows a cat"
    assert Clean(urls=False).apply("a https://b.c").text == "a https://b.c"
    assert Clean(max_chars=10).apply("two dogs, running").text == "two dogs"
    assert Clean().digest() != latin.digest()
    with pytest.raises(ValueError, match="max_chars"):
        Clean(max_chars=CAPTION_CHARS + 1)


@pytest.mark.parametrize(
    "piece", ["a", "a.", "@", "a@", "the ", "www.", '"', "the video shows ", "in this "]
)
def test_a_hostile_text_costs_no_time(piece):
    begun = time.perf_counter()
    Clean().apply(piece * (1 << 20))
    assert time.perf_counter() - begun < 2
