"""A reward that asks a model, on any server with OpenAI's /v1/chat/completions (vLLM, llama.cpp, transformers serve).

Paste it into rewards.py, start the judge (docs/scaling.md: on a GPU of its own), and name it in config.yaml:

    judge_reward: {weight: 1, server: "http://localhost:8008", model: Qwen/Qwen2.5-7B-Instruct}

It is asked about `at_once` completions at a time. After a lost connection, a time-out or an error of the server (5xx,
or 429: too many requests) it is asked again, three times; then the run ends, and --resume goes on from its newest
checkpoint. A reply without a number from 0 to 10 is None, which leaves the completion out of the reward.
"""

import asyncio
import re

import httpx2

TRIES = 4
QUESTION = """Grade an answer to a question.
Question: {question}
Right answer: {right}
Answer to grade: {text}
Is it right, and says no more than was asked? Reply with one number from 0 (wrong) to 10 (right), and nothing else."""


async def judge_reward(
    prompts,
    completions,
    answer,
    server: str = "http://localhost:8008",
    model: str = "",
    at_once: int = 16,
    seconds: float = 60,
):
    """The judge's grade, from 0 to 1."""
    places = asyncio.Semaphore(at_once)

    async def grade(client, question: str, text: str, right: str) -> float | None:
        content = QUESTION.format(question=question, right=right, text=text)
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
        for failed in range(1, TRIES + 1):
            try:
                async with places:
                    reply = await client.post(f"{server}/v1/chat/completions", json=body)
                if reply.status_code < 500 and reply.status_code != 429:
                    break
                problem = f"{reply.status_code} {reply.text[:200]}"
            except httpx2.ConnectError as error:
                problem = f"nothing answers ({error}); start the judge"
            except httpx2.TransportError as error:  # a lost connection, a time-out
                problem = f"{type(error).__name__} {error}"
            if failed == TRIES:
                raise RuntimeError(f"{server}: {problem}")
            await asyncio.sleep(2**failed / 2)
        if reply.status_code != 200:  # a model that it does not have, a key that is missing
            raise RuntimeError(f"{server}: {reply.status_code} {reply.text[:200]}")
        found = re.search(r"\d+(\.\d+)?", reply.json()["choices"][0]["message"]["content"])
        number = float(found[0]) if found else 11
        return number / 10 if number <= 10 else None

    async with httpx2.AsyncClient(timeout=seconds) as client:
        rows = zip(map(_last, prompts), map(_last, completions), answer, strict=True)
        return await asyncio.gather(*(grade(client, *row) for row in rows))


def _last(turns) -> str:
    """The text, or that of the last chat message."""
    return turns if isinstance(turns, str) else turns[-1]["content"] or ""
