"""PyPI `openrouter`: the official SDK, which rejects whatever deviates from its schema."""

from harness import KEY, MESSAGES, check_error, check_hint, check_reply, raised, run
from openrouter import OpenRouter, errors
from openrouter.utils import RetryConfig

ERRORS = {
    400: errors.BadRequestResponseError,
    401: errors.UnauthorizedResponseError,
    402: errors.PaymentRequiredResponseError,
    403: errors.ForbiddenResponseError,
    404: errors.NotFoundResponseError,
    408: errors.RequestTimeoutResponseError,
    413: errors.PayloadTooLargeResponseError,
    422: errors.UnprocessableEntityResponseError,
    429: errors.TooManyRequestsResponseError,
    500: errors.InternalServerResponseError,
    502: errors.BadGatewayResponseError,
    503: errors.ServiceUnavailableResponseError,
    524: errors.EdgeNetworkTimeoutResponseError,
    529: errors.ProviderOverloadedResponseError,
}


def client(case):
    # By default it repeats 5xx for an hour.
    never = RetryConfig("none", None, False)
    return OpenRouter(api_key=KEY, server_url=case["base"] + "/api/v1", retry_config=never, timeout_ms=30_000)


def chat(case):
    answer = client(case).chat.send(model=case["model"], messages=MESSAGES)
    usage = answer.usage
    check_reply(answer.choices[0].message.content, usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    assert answer.choices[0].finish_reason == "stop" and answer.model == case["model"]
    assert usage.cost > 0


def stream(case):
    chunks = list(client(case).chat.send(model=case["model"], messages=MESSAGES, stream=True))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    usage = chunks[-1].usage
    check_reply(text, usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    assert not any(chunk.error for chunk in chunks)


def models(case):
    assert case["model"] in [model.id for model in client(case).models.list().result.data]


def failed(case, streaming):
    error = raised(
        lambda: client(case).chat.send(model=case["model"], messages=MESSAGES, stream=streaming),
        errors.OpenRouterError,
    )
    check_error(error, ERRORS[case["status"]], error.status_code, case)
    assert error.data.error.code == case["status"] and error.data.error.message, f"data {error.data}"
    check_hint(error.headers, case)


def in_band(case):
    chunks = list(client(case).chat.send(model=case["model"], messages=MESSAGES, stream=True))
    assert len(chunks) == 3, f"{len(chunks)} chunks"
    assert chunks[-1].error.code == case["status"], f"chunk {chunks[-1]}"


def broken(case):
    chunks, error = [], None
    try:
        for chunk in client(case).chat.send(model=case["model"], messages=MESSAGES, stream=True):
            chunks.append(chunk)
    except Exception as raised_here:  # of the upstream's own forms it rejects some, and of ours the unclean end
        error = raised_here
    told = [chunk.error for chunk in chunks if chunk.error]
    assert told or error, "no error"
    if case["told"]:
        assert [error.code for error in told] == [502] and len(chunks) == 3, f"{chunks}"


run("PyPI openrouter", {
    "chat": chat,
    "stream": stream,
    "models": models,
    "error": lambda case: failed(case, False),
    "stream error": lambda case: failed(case, True),
    "in-band": in_band,
    "broken": broken,
})
