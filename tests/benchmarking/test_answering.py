import json

import httpx
import pytest

from epic_retrieval.benchmarking.answering import Endpoint, StandIn, open_answerer, prompt_for
from epic_retrieval.benchmarking.conditions import Answering
from epic_retrieval.errors import EpicError

PROMPT = prompt_for("what is it?", ["first passage", "second"])


def events(*contents: str) -> str:
    chunks = [json.dumps({"choices": [{"delta": {"content": one}}]}) for one in contents]
    return "".join(f"data: {one}\n\n" for one in chunks) + "data: [DONE]\n\n"


def endpoint(answer: httpx.Response, asked: list[httpx.Request]) -> Endpoint:
    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer

    return Endpoint("http://model.test/v1/", "small", httpx.MockTransport(handle))


def test_the_prompt_holds_passages_then_the_question() -> None:
    assert PROMPT.index("[1] first passage") < PROMPT.index("[2] second") < PROMPT.index("what is")


def test_the_cost_of_a_stand_in_by_hand() -> None:
    stand_in = StandIn(Answering(first_ms=10, ms_per_token=0.5))
    assert stand_in.seconds("x" * 400) == pytest.approx(0.060)  # 10 ms and 100 tokens
    assert stand_in.seconds("") == pytest.approx(0.010)


@pytest.mark.parametrize("way", ["sleep", "compute"])
async def test_stand_ins_come_back(way: str) -> None:
    stand_in = open_answerer(Answering(way=way, first_ms=1, ms_per_token=0), None, "")
    stand_in.first("hello")
    await stand_in.first_later("hello")


async def test_an_endpoint_is_asked_as_openai_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-mine")
    asked: list[httpx.Request] = []
    server = endpoint(httpx.Response(200, text=events("", "Hel", "lo")), asked)
    server.first(PROMPT)
    await server.first_later(PROMPT)
    (first, _) = asked
    assert str(first.url) == "http://model.test/v1/chat/completions"
    assert first.headers["authorization"] == "Bearer key-of-mine"
    body = json.loads(first.content)
    assert (body["model"], body["stream"]) == ("small", True)
    assert body["messages"] == [{"role": "user", "content": PROMPT}]


def test_answers_that_are_none() -> None:
    with pytest.raises(EpicError, match="no content"):
        endpoint(httpx.Response(200, text=events("")), []).first(PROMPT)
    with pytest.raises(EpicError, match=r"404.*no such model"):
        endpoint(httpx.Response(404, text="no such model"), []).first(PROMPT)


def test_a_server_that_is_not_there() -> None:
    def handle(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    server = Endpoint("http://model.test", "small", httpx.MockTransport(handle))
    with pytest.raises(EpicError, match="cannot be reached: refused"):
        server.first(PROMPT)
