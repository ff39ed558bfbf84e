"""Writes tool_calls.jsonl: 60 conversations in which functions are called, always the same.

python examples/recipes/tool_calls.py
"""

import json
import random
from pathlib import Path
from typing import Any

Row = dict[str, Any]

CITIES = ["Lisbon", "Oslo", "Nairobi", "Lima", "Hanoi", "Quito", "Turin", "Perth", "Dakar", "Riga",
          "Busan", "Leeds", "Tampa", "Kyoto", "Accra"]  # fmt: skip
SKIES = ["rain", "sun", "fog", "snow", "wind"]
CURRENCIES = ["EUR", "USD", "JPY", "CHF"]
DAYS = ["Monday", "Wednesday", "Friday", "Sunday"]

WEATHER = ["Will I need a coat in {city} on {day}?", "{day} in {city}: how is the weather?"]
CONVERT = ["How much are {amount} pounds in {to}?", "Please change {amount} pounds into {to}."]
CLOCK = ["What time is it in {city} now?", "Is it too late to call {city}?"]
SUMS = ["What is {a} plus {b}?", "Add {a} and {b}."]


def function(name: str, description: str, **parameters: str) -> Row:
    """Description of a function whose parameters are all required."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in parameters.items()},
                "required": list(parameters),
            },
        },
    }


TOOLS = [
    function("weather", "Forecast for a city.", city="string", day="string"),
    function("convert", "Amount in another currency.", amount="number", to="string"),
    function("clock", "Local time of a city.", city="string"),
]


def exchange(question: str, name: str, arguments: Row, result: Row, answer: str) -> Row:
    """A question, the call it leads to, what the function returns, and the answer."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": json.dumps(result)},
            {"role": "assistant", "content": answer},
        ],
        "tools": TOOLS,
    }


def weather(number: int, random_: random.Random) -> Row:
    city, day = CITIES[number], random_.choice(DAYS)
    sky, degrees = random_.choice(SKIES), random_.randint(-5, 35)
    question = WEATHER[number % len(WEATHER)].format(city=city, day=day)
    result = {"sky": sky, "degrees": degrees}
    answer = f"{sky.capitalize()} and {degrees} degrees."
    return exchange(question, "weather", {"city": city, "day": day}, result, answer)


def convert(number: int, random_: random.Random) -> Row:
    amount, to = random_.randint(2, 900), random_.choice(CURRENCIES)
    value = round(amount * random_.uniform(0.5, 2), 2)
    question = CONVERT[number % len(CONVERT)].format(amount=amount, to=to)
    arguments = {"amount": amount, "to": to}
    return exchange(question, "convert", arguments, {"value": value}, f"{value} {to}.")


def clock(number: int, random_: random.Random) -> Row:
    city = CITIES[number]
    time = f"{random_.randint(0, 23):02}:{random_.randint(0, 59):02}"
    question = CLOCK[number % len(CLOCK)].format(city=city)
    return exchange(question, "clock", {"city": city}, {"time": time}, f"It is {time}.")


def sums(number: int, random_: random.Random) -> Row:
    """A question that needs no function, so that the model learns when not to call one."""
    a, b = random_.randint(2, 60), random_.randint(2, 60)
    messages = [
        {"role": "user", "content": SUMS[number % len(SUMS)].format(a=a, b=b)},
        {"role": "assistant", "content": str(a + b)},
    ]
    return {"messages": messages, "tools": TOOLS}


def rows() -> list[Row]:
    """The rows, of every kind in turn."""
    random_ = random.Random(7)
    kinds = (weather, convert, clock, sums)
    return [kind(number, random_) for number in range(len(CITIES)) for kind in kinds]


if __name__ == "__main__":
    target = Path(__file__).with_suffix(".jsonl")
    target.write_text("".join(json.dumps(row) + "\n" for row in rows()))
