"""The tokens of a piece's collection and composer."""

from __future__ import annotations

import pytest

from quintet.piano.context import COMPOSERS, DATASETS, composer_token, context_tokens, dataset_token


@pytest.mark.parametrize("token", DATASETS)
def test_a_collection_is_known_in_any_case(token: str) -> None:
    name = token.strip("<>")
    assert [dataset_token({"dataset": said}) for said in (name, name.lower(), name.title())] == [token] * 3


@pytest.mark.parametrize("source", [{}, {"dataset": None}, {"dataset": ""}, {"dataset": "MAESTRO-2"}, {"dataset": 7}])
def test_other_collections_and_none_have_the_last_token(source: dict) -> None:
    assert dataset_token(source) == "<PIANO_FOR_AI>"


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("Alexander Scriabin", "<SCRIABIN>"),
        ("César Franck", "<FRANCK>"),
        ("Wolfgang Amadeus Mozart", "<MOZART>"),
        ("CHOPIN, FRÉDÉRIC", "<CHOPIN>"),
        ("Felix Mendelssohn Bartholdy", "<MENDELSSON>"),
        ("liszt", "<LISZT>"),
        ("Franz Schubert", "<SCHUBERT>"),
        ("Johannes Brahms", "<BRAHMS>"),
        ("Joseph Haydn", "<HAYDN>"),
        ("L. v. Beethoven", "<BEETHOVEN>"),
        ("Mily Balakirev", "<BALAKIREV>"),
        ("Robert Schumann", "<SCHUMANN>"),
        ("Sergei Rachmaninoff", "<RACHMANIOFF>"),
        ("Bach", "<BACH>"),
        ("Johann Sebastian Bach / Franz Liszt", "<UNKNOWN_COMPOSER>"),
        ("Offenbach", "<UNKNOWN_COMPOSER>"),
        ("Franz von Suppé", "<UNKNOWN_COMPOSER>"),
        ("Unknown_composer", "<UNKNOWN_COMPOSER>"),
        ("", "<UNKNOWN_COMPOSER>"),
        (None, "<UNKNOWN_COMPOSER>"),
    ],
)
def test_a_composer_is_known_by_one_surname(name: str | None, token: str) -> None:
    assert composer_token({"composer": name}) == token


def test_a_piece_without_metadata_has_both_tokens() -> None:
    assert context_tokens({}) == ("<PIANO_FOR_AI>", "<UNKNOWN_COMPOSER>")
    assert context_tokens({"dataset": "maestro", "composer": "J. S. Bach"}) == ("<MAESTRO>", "<BACH>")


def test_there_are_ten_collections_and_fifteen_composers() -> None:
    assert (len(set(DATASETS)), len(set(COMPOSERS))) == (10, 15)
