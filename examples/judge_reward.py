"""A reward that asks a judge over the network: paste it into rewards.py, and name it in config.yaml:

    judge_reward: {weight: 1, server: "http://localhost:8000/score"}

All completions of a step are asked about at once. After a lost connection or a time-out one is asked about again, three
times; then the run ends, and --resume goes on from its newest checkpoint. None leaves a row out of the reward, here
where the judge itself reports an error.
"""

import asyncio

import httpx2

TRIES = 4


async def judge_reward(completions, server: str = "http://localhost:8000/score", seconds: float = 30):
    """The judge's score, from 0 to 1."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    async with httpx2.AsyncClient(timeout=seconds, limits=httpx2.Limits(max_connections=None)) as client:

        async def ask(text: str) -> float | None:
            for failed in range(1, TRIES + 1):
                try:
                    answer = await client.post(server, json={"text": text})
                    return answer.json()["score"] if answer.status_code == 200 else None
                except httpx2.TransportError:  # a lost connection, or a time-out
                    if failed == TRIES:
                        raise
                    await asyncio.sleep(2**failed / 2)

        return await asyncio.gather(*(ask(text) for text in texts))
