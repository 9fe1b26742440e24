"""What the Python clients share: the cases come from the runner, one line a case goes back."""

import json
import os

KEY = os.environ.get("CLIENT_KEY", "")
MESSAGES = [{"role": "user", "content": "Say six words."}]
TOKENS = 6  # the length of every reply, by scenario.toml


def run(client, steps):
    """Runs each case with the step named by its `do`."""
    for case in json.loads(os.environ["CASES"]):
        try:
            steps[case["do"]](case)
        except Exception as error:  # a case fails, the others still run
            what = " ".join(str(error).split())[:300] or "no message"
            print(f"FAIL {client}: {case['name']}: {type(error).__name__}: {what}", flush=True)
        else:
            print(f"ok   {client}: {case['name']}", flush=True)


def check_reply(text, prompt, completion, total=None):
    """A whole reply of known length with the usage that belongs to it."""
    assert len(text.split()) == TOKENS, f"text {text!r}"
    assert prompt > 0 and completion == TOKENS, f"usage {prompt} {completion}"
    assert total is None or total == prompt + completion, f"total {total}"


def check_error(error, kind, status, case):
    """The typed error, its status, and the hint when to come back."""
    assert type(error) is kind, f"{type(error).__name__} in place of {kind.__name__}: {error}"
    assert status == case["status"], f"status {status} in place of {case['status']}"


def check_hint(headers, case):
    """`Retry-After` in whole seconds, where the case wants one."""
    hint = headers.get("retry-after")
    if case.get("hint"):
        assert hint and int(hint) > 0, f"Retry-After {hint!r}"


def raised(function, kind):
    """The error that `function` raises."""
    try:
        answer = function()
    except kind as error:
        return error
    raise AssertionError(f"no error but {answer!r}")
