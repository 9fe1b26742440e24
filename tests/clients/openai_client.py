"""PyPI `openai`: plain OpenAI compatibility."""

import openai
from harness import KEY, MESSAGES, check_error, check_hint, check_reply, raised, run

ERRORS = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}


def client(case):
    return openai.OpenAI(base_url=case["base"] + "/api/v1", api_key=KEY, max_retries=0, timeout=30)


def chat(case):
    answer = client(case).chat.completions.create(model=case["model"], messages=MESSAGES)
    usage = answer.usage
    check_reply(answer.choices[0].message.content, usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    assert answer.choices[0].finish_reason == "stop" and answer.model == case["model"]


def stream(case):
    chunks = list(client(case).chat.completions.create(model=case["model"], messages=MESSAGES, stream=True))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    usage = chunks[-1].usage
    check_reply(text, usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    assert sum(bool(choice.delta.content) for chunk in chunks for choice in chunk.choices) == 6, "not in pieces"


def models(case):
    assert case["model"] in [model.id for model in client(case).models.list()]


def failed(case, streaming):
    error = raised(
        lambda: client(case).chat.completions.create(model=case["model"], messages=MESSAGES, stream=streaming),
        openai.APIError,
    )
    default = openai.InternalServerError if case["status"] >= 500 else openai.APIStatusError
    check_error(error, ERRORS.get(case["status"], default), error.status_code, case)
    assert error.body["code"] == case["status"] and error.body["message"], f"body {error.body}"
    check_hint(error.response.headers, case)


def in_band(case):
    pieces = []

    def consume():
        for chunk in client(case).chat.completions.create(model=case["model"], messages=MESSAGES, stream=True):
            pieces.append(chunk.choices[0].delta.content)

    error = raised(consume, openai.APIError)
    assert len(pieces) == 2, f"{pieces} before the error"
    assert error.body["code"] == case["status"], f"body {error.body}"


class Failed(Exception):
    """An event of the responses API that says so."""


def broken(case):
    api, more = client(case), {"model": case["model"], "stream": True}
    for begin, text in [
        (lambda: api.chat.completions.create(messages=MESSAGES, **more), lambda chunk: chunk.choices[0].delta.content),
        (lambda: api.completions.create(prompt="Say six words.", **more), lambda chunk: chunk.choices[0].text),
        (lambda: api.responses.create(input="Say six words.", **more), lambda event: getattr(event, "delta", None)),
    ]:
        pieces = []

        def consume():
            for event in begin():
                if getattr(event, "type", None) in ("response.failed", "error"):
                    raise Failed(event)
                pieces.extend(filter(None, [text(event)]))

        error = raised(consume, (openai.APIError, Failed))
        assert len(pieces) == 2, f"{pieces} before the error"
        if case["told"]:
            assert error.body["metadata"]["reason"] == "truncated", f"body {error.body}"


run("PyPI openai", {
    "chat": chat,
    "stream": stream,
    "models": models,
    "error": lambda case: failed(case, False),
    "stream error": lambda case: failed(case, True),
    "in-band": in_band,
    "broken": broken,
})
