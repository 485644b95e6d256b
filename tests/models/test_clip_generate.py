"""Beam search against the best of all captions, by trying them all."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.clip_generate import Beams, search

START, END, WORDS, LONGEST = 0, 1, 4, 4


def table(seed: int):
    """Log probabilities that depend on the image and on every token so far."""
    hidden = torch.randn(WORDS, WORDS, generator=torch.Generator().manual_seed(seed))

    def next_logits(image_N: torch.Tensor, ids_NL: torch.Tensor) -> torch.Tensor:
        places = torch.arange(1, ids_NL.shape[1] + 1)
        state = (hidden[ids_NL] * places[:, None]).sum(1) + image_N[:, None]
        return 2 * torch.sin(state * 1.7)

    return next_logits


def mean_log_probability(next_logits, image: int, tokens: tuple[int, ...]) -> float:
    whole = 0.0
    for place, token in enumerate(tokens):
        ids = torch.tensor([[START, *tokens[:place]]])
        whole += float(next_logits(torch.tensor([image]), ids).double().log_softmax(-1)[0, token])
    return whole / len(tokens)


def best_of_all(next_logits, image: int, min_tokens: int) -> list[int]:
    others = [token for token in range(WORDS) if token != END]
    ended = [
        (*words, END)
        for count in range(min_tokens - 1, LONGEST)
        for words in product(others, repeat=count)
    ]
    cut = list(product(others, repeat=LONGEST))
    winner = max(ended + cut, key=lambda t: mean_log_probability(next_logits, image, t))
    return [token for token in winner if token != END]


@given(st.integers(0, 10_000), st.integers(1, 3))
def test_with_enough_beams_the_best_caption_is_found(seed, min_tokens):
    next_logits = table(seed)
    # more beams than captions, so that no search ends early
    beams = Beams(num_beams=WORDS**LONGEST, min_tokens=min_tokens, max_tokens=LONGEST)
    found = search(next_logits, 1, start=START, end=END, beams=beams)
    wanted = best_of_all(next_logits, 0, min_tokens)
    assert found == [wanted]


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 5))
def test_a_caption_does_not_depend_on_the_other_images(seed, num_beams, count):
    next_logits = table(seed)
    beams = Beams(num_beams=num_beams, min_tokens=2, max_tokens=6)
    together = search(next_logits, count, start=START, end=END, beams=beams)
    for image, caption in enumerate(together):

        def alone(image_N, ids_NL, image=image):
            return next_logits(image_N + image, ids_NL)

        assert search(alone, 1, start=START, end=END, beams=beams) == [caption]
        assert END not in caption
        assert 1 <= len(caption) <= 6


def test_one_beam_takes_the_likeliest_word_each_time():
    next_logits = table(3)
    ids, wanted = [START], []
    for _ in range(6):
        logits = next_logits(torch.tensor([0]), torch.tensor([ids]))[0]
        if len(ids) < 7:
            logits[END] = -1e9
        ids.append(int(logits.argmax()))
        wanted.append(ids[-1])
    beams = Beams(num_beams=1, min_tokens=6, max_tokens=6)
    found = search(next_logits, 1, start=START, end=END, beams=beams)[0]
    assert found[:5] == wanted[:5]


@pytest.mark.parametrize("given", [{"num_beams": 0}, {"min_tokens": 9, "max_tokens": 8}])
def test_a_search_without_room_is_refused(given):
    with pytest.raises(ValueError, match="no room"):
        Beams(**given)
