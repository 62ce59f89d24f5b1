"""What gives the first answer: a stand-in for a language model, or an OpenAI-compatible endpoint.

Knows nothing of retrieval; a prompt comes as one text.
"""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from epic_retrieval.benchmarking.conditions import Answering
from epic_retrieval.errors import EpicError, MissingExtraError

if TYPE_CHECKING:
    import httpx

# Of English text, by and large; the answering model's own vocabulary is not known here.
_CHARACTERS_PER_TOKEN = 4
_SIDE = 64


class Answerer(Protocol):
    """Gives the first piece of an answer."""

    def first(self, prompt: str) -> None:
        """Return when the first piece of the answer is there."""
        ...

    async def first_later(self, prompt: str) -> None:
        """The same for asynchronous callers."""
        ...


class StandIn:
    """Costs time and knows nothing, in place of a language model.

    Args:
        cost: how long, and whether it waits or computes.
    """

    def __init__(self, cost: Answering) -> None:
        self._cost = cost
        self._matrix = np.eye(_SIDE)

    def seconds(self, prompt: str) -> float:
        """How long an answer to this prompt takes."""
        tokens = len(prompt) / _CHARACTERS_PER_TOKEN
        return (self._cost.first_ms + self._cost.ms_per_token * tokens) / 1e3

    def first(self, prompt: str) -> None:
        """Wait, or compute, for as long as the prompt is worth."""
        if self._cost.way == "sleep":
            time.sleep(self.seconds(prompt))
            return
        end = time.perf_counter() + self.seconds(prompt)
        while time.perf_counter() < end:
            self._matrix = self._matrix @ self._matrix

    async def first_later(self, prompt: str) -> None:
        """The same; computing happens in a thread."""
        if self._cost.way == "sleep":
            await asyncio.sleep(self.seconds(prompt))
        else:
            await asyncio.to_thread(self.first, prompt)


class Endpoint:
    """The first token from a server that speaks OpenAI's chat completions, streamed.

    The key, where one is needed, comes from `OPENAI_API_KEY`.

    Args:
        url: up to and without `/chat/completions`, such as http://localhost:8000/v1.
        model: its name there.
        transport: how httpx reaches it; None is the network.

    Raises:
        MissingExtraError: httpx is not installed.
    """

    def __init__(
        self, url: str, model: str, transport: "httpx.MockTransport | None" = None
    ) -> None:
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "an endpoint needs httpx, which is not installed; "
                "run: pip install 'epic-retrieval[bench]'"
            ) from error
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._client = httpx.Client(transport=transport, headers=headers, timeout=60.0)

    def first(self, prompt: str) -> None:
        """Return when the first piece of content has come.

        Raises:
            EpicError: the server refuses, cannot be reached, or sends no content.
        """
        import httpx

        asked = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "max_tokens": 1,
        }
        try:
            with self._client.stream("POST", self._url, json=asked) as answer:
                if answer.is_error:
                    answer.read()
                    raise EpicError(
                        f"{self._url} answered {answer.status_code}: {answer.text[:200]!r}; check"
                        " the address, the model's name and OPENAI_API_KEY"
                    )
                if not any(_contents(answer.iter_lines())):
                    raise EpicError(f"{self._url} sent no content; expected streamed completions")
        except httpx.HTTPError as error:
            raise EpicError(f"{self._url} cannot be reached: {error}; check the address") from error

    async def first_later(self, prompt: str) -> None:
        """The same, in a thread."""
        await asyncio.to_thread(self.first, prompt)


def _contents(lines: Iterator[str]) -> Iterator[str]:
    """The pieces of content in a stream of server-sent events."""
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        for choice in json.loads(data).get("choices", []):
            yield (choice.get("delta") or {}).get("content") or ""


def open_answerer(cost: Answering, endpoint: str | None, model: str) -> Answerer:
    """The stand-in, or with an address the server there."""
    return StandIn(cost) if endpoint is None else Endpoint(endpoint, model)


def prompt_for(question: str, passages: list[str]) -> str:
    """The question behind the passages, as a user of retrieval words it."""
    numbered = "\n\n".join(f"[{place}] {text}" for place, text in enumerate(passages, start=1))
    return (
        "Answer the question from the passages, and name the ones that you use.\n\n"
        f"{numbered}\n\nQuestion: {question}\nAnswer:"
    )
