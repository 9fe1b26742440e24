"""PyPI `anthropic`, on `/v1/messages`."""

import anthropic
from anthropic import _exceptions as errors  # some of the classes have no public name
from harness import KEY, MESSAGES, check_error, check_hint, check_reply, raised, run

ERRORS = {
    400: (errors.BadRequestError, "invalid_request_error"),
    401: (errors.AuthenticationError, "authentication_error"),
    402: (errors.PaymentRequiredError, "billing_error"),
    403: (errors.PermissionDeniedError, "permission_error"),
    404: (errors.NotFoundError, "not_found_error"),
    408: (errors.RequestTimeoutError, "timeout_error"),
    413: (errors.ContentTooLargeError, "invalid_request_error"),
    422: (errors.UnprocessableEntityError, "invalid_request_error"),
    429: (errors.RateLimitError, "rate_limit_error"),
    500: (errors.InternalServerError, "api_error"),
    502: (errors.InternalServerError, "api_error"),
    503: (errors.ServiceUnavailableError, "overloaded_error"),
    524: (errors.InternalServerError, "timeout_error"),
    529: (errors.OverloadedError, "overloaded_error"),
}


def client(case):
    # The key goes out as `x-api-key`.
    return anthropic.Anthropic(base_url=case["base"] + "/api", api_key=KEY, max_retries=0, timeout=30)


def asked(case):
    return {"model": case["model"], "messages": MESSAGES, "max_tokens": 64}


def chat(case):
    answer = client(case).messages.create(**asked(case))
    check_reply(answer.content[0].text, answer.usage.input_tokens, answer.usage.output_tokens)
    assert answer.stop_reason == "end_turn" and answer.model == case["model"]


def stream(case):
    pieces = []
    with client(case).messages.stream(**asked(case)) as events:
        for text in events.text_stream:
            pieces.append(text)
        answer = events.get_final_message()
    check_reply("".join(pieces), answer.usage.input_tokens, answer.usage.output_tokens)
    assert len(pieces) == 6 and answer.stop_reason == "end_turn"


def models(case):
    assert case["model"] in [model.id for model in client(case).models.list()]


def failed(case, streaming):
    error = raised(lambda: client(case).messages.create(**asked(case), stream=streaming), errors.APIError)
    kind, name = ERRORS[case["status"]]
    check_error(error, kind, error.status_code, case)
    assert error.body["type"] == "error" and error.body["error"]["type"] == name, f"body {error.body}"
    assert error.body["error"]["message"]
    check_hint(error.response.headers, case)


def in_band(case):
    pieces = []

    def consume():
        with client(case).messages.stream(**asked(case)) as events:
            for text in events.text_stream:
                pieces.append(text)

    error = raised(consume, errors.APIError)
    assert len(pieces) == 2, f"{pieces} before the error"
    assert error.body["error"]["type"] == ERRORS[case["status"]][1], f"body {error.body}"


def broken(case):
    pieces = []

    def consume():
        with client(case).messages.stream(**asked(case)) as events:
            for text in events.text_stream:
                pieces.append(text)

    error = raised(consume, errors.APIError)
    assert len(pieces) == 2, f"{pieces} before the error"
    assert error.body["type"] == "error", f"body {error.body}"
    if case["told"]:
        assert error.body["metadata"]["reason"] == "truncated", f"body {error.body}"


run("PyPI anthropic", {
    "chat": chat,
    "stream": stream,
    "models": models,
    "error": lambda case: failed(case, False),
    "stream error": lambda case: failed(case, True),
    "in-band": in_band,
    "broken": broken,
})
