"""No key stands in a recipe: a run writes it down in several places."""

import pytest

from ingest.caption import Captions, OpenAI
from ingest.keep import Keep
from ingest.no_secrets import refuse
from ingest.scorers import Scorers
from pipelines.curate import Config

KEY = "sk-proj-0123456789abcdef"
USE = {"use": "lab:Stage"}
SECRETS = [
    {"api_key": "x"},
    {"apiKey": "x"},
    {"openai-api-key": "x"},
    {"token": "x"},
    {"hf_token": "x"},
    {"password": "x"},
    {"db_password": b"x"},
    {"client_secret": "x"},
    {"aws_secret_access_key": "x"},
    {"key": KEY},
    {"headers": {"x": "Bearer abcdefgh1234"}},
    {"several": [{"inner": {"api_key": "x"}}]},
    {"several": ["a", KEY]},
    {KEY: 1},
]
INNOCENT = {
    "api_key": "",
    "api_key_env": "LAB_KEY",
    "key": "brightness",
    "max_tokens": 200,
    "tokens": "abc",
    "tokenizer": "t5",
    "pad_token": "<pad>",
    "token": 7,
    "keyword": "dogs",
    "prompt": "sk- is how a key begins",
    "secretary": "a word",
    "monkey": "a word",
}


@pytest.mark.parametrize("table", SECRETS, ids=str)
def test_a_secret_is_refused_wherever_a_stage_is_named(table):
    with pytest.raises(ValueError, match="keys belong in the environment") as raised:
        refuse(table, "captioners")
    assert KEY not in str(raised.value)
    for make in (
        lambda: Captions(captioners=(USE | table,)),
        lambda: Scorers(scorers=(USE | table,)),
        lambda: Scorers(embedder=USE | table),
        lambda: Keep(own=(USE | table,)),
        lambda: Config(source=(".",), out="out", detector=USE | table),
    ):
        with pytest.raises(ValueError, match="keys belong in the environment"):
            make()


def test_what_is_no_secret_passes():
    refuse(INNOCENT, "captioners")
    assert Captions(captioners=(USE | INNOCENT,)).captioners


@pytest.mark.parametrize("name", [KEY, "hf_0123456789abcdef", "a b", "a-b", "1a", "$KEY"])
def test_a_key_is_no_variables_name(name):
    with pytest.raises(ValueError, match="name of an environment variable") as raised:
        OpenAI(key_env=name)
    assert name not in str(raised.value)


@pytest.mark.parametrize("name", ["", "LAB_KEY", "_k1", "OPENAI_API_KEY"])
def test_a_variables_name(name):
    assert OpenAI(key_env=name).key_env == name


@pytest.mark.parametrize("url", ["https://me:key@host/v1", "https://host/v1?key=abc"])
def test_a_key_in_the_address(url):
    with pytest.raises(ValueError, match="url holds a key"):
        OpenAI(url=url)
