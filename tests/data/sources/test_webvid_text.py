"""Captions of WebVid lose dates, locations, formats and terms of stock footage, and nothing else."""

import pytest

from emu_jax.data.sources.webvid_text import clean_caption


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("KYIV, UKRAINE - MAY 12, 2019: People walk in a park, 4k uhd.", "People walk in a park."),
        ("Bangkok,thailand - circa march 2016: night market", "night market"),
        ("Circa 1950s: a family eats dinner", "a family eats dinner"),
        ("Sunset over the sea - stock footage", "Sunset over the sea"),
        ("Sunset over the sea 4K", "Sunset over the sea"),
        ("Time lapse of clouds, full HD, 60fps", "Time lapse of clouds"),
        ("Crowd in a square, 12.05.2017", "Crowd in a square"),
        ("Aerial view of a city (1080p)", "Aerial view of a city"),
        ("4k stock video", ""),
        ("  a   red circle\nmoves left ", "a red circle moves left"),
        ("In May the flowers bloom", "In May the flowers bloom"),
        ("Two dogs: a black one and a white one", "Two dogs: a black one and a white one"),
        ("A 12 inch ruler on a desk", "A 12 inch ruler on a desk"),
        ("Race of 5k runners in the rain", "Race of 5k runners in the rain"),
        ("The 1990 world cup, fans sing", "The 1990 world cup, fans sing"),
    ],
)
def test_captions(text, cleaned):
    assert clean_caption(text) == cleaned
    assert clean_caption(cleaned) == cleaned
