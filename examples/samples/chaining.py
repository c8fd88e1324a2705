"""Function chaining: activities one after the other, and a custom status that shows how far it is."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import ray_durable as durable
from samples import journal

CITIES = ("Tokyo", "Seattle", "London")


@durable.activity
def say_hello(name: str) -> str:
    """Greet somebody."""
    journal.note(name)
    return f"Hello {name}!"


@durable.activity
def next_number(number: int) -> int:
    """The next number."""
    journal.note(str(number))
    return number + 1


@durable.orchestrator
async def hello_sequence(ctx: durable.OrchestrationContext) -> list[str]:
    """Three greetings, one after the other. If the process dies on the way, those that are made stay made."""
    greetings = []
    for city in CITIES:
        greetings.append(await ctx.call_activity(say_hello, city))
    return greetings


@durable.orchestrator
def hello_sequence_by_generator(
    ctx: durable.OrchestrationContext,
) -> Generator[Any, Any, list[str]]:
    """The same as a generator function, which is how Durable Functions for Python are written."""
    first = yield ctx.call_activity("say_hello", "Tokyo")
    second = yield ctx.call_activity("say_hello", "Seattle")
    third = yield ctx.call_activity("say_hello", "London")
    return [first, second, third]


@durable.orchestrator
async def hello_with_status(ctx: durable.OrchestrationContext) -> list[str]:
    """The custom status is the city that was greeted last: `handle.status().custom_status`."""
    greetings = []
    for city in CITIES:
        greetings.append(await ctx.call_activity(say_hello, city))
        ctx.set_custom_status(city)
    return greetings


@durable.orchestrator
async def count_with_status(ctx: durable.OrchestrationContext) -> int:
    """Each step goes on from the result of the one before; the custom status draws the chain."""
    number, drawn = 0, ""
    for _ in range(3):
        number = await ctx.call_activity(next_number, number)
        drawn = f"{drawn} -> {number}".removeprefix(" -> ")
        ctx.set_custom_status(drawn if number == 3 else f"{drawn} ->")
    return number
