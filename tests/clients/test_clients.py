"""Clients that people have, against the server with the built-in model on the CPU: OpenAI's own package, and the `llm` command.

    SECATEUR=target/quick/secateur python -m pytest tests/clients

They are installed by the group `clients` of pyproject.toml; a client that is missing skips its tests.
"""

import json
import os
import pathlib
import subprocess
import sys
import typing
import urllib.request

import pytest

openai = pytest.importorskip("openai", reason="the package openai is not installed")

EXAMPLE = (
    "We count modulo 10. #1 d is 3. #2 r exceeds d by 9. #3 e equals r plus 7. #4 r drops by d. #5 c is r minus e. "
    "#6 h is 4. #7 c rises by 2. What is c?"
)
MESSAGES = [{"role": "user", "content": EXAMPLE}]


def serving(*options):
    """Starts a server of our own, and yields its address."""
    binary = os.environ.get("SECATEUR", "target/quick/secateur")
    command = [binary, "serve", "--port", "0", "--device", "cpu", "--sequences", "2", "--api-key", "a key", "--quiet"]
    server = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    line = server.stderr.readline()
    assert "listening on " in line, line + server.stderr.read()
    yield line.split()[-1]
    server.terminate()
    assert server.wait(timeout=60) == 0, "SIGTERM ends a server well"


@pytest.fixture(scope="session")
def address():
    yield from serving()


@pytest.fixture(scope="session")
def caller():
    """A client of a server whose model calls tools; see tests/fixtures/make_caller.py."""
    model = pathlib.Path(__file__).parent.parent / "fixtures" / "caller"
    for address in serving("--model", model, "--served-name", "caller"):
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="a key", max_retries=2, timeout=300)


@pytest.fixture
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="a key", max_retries=0, timeout=300)


def chat(client, **options):
    return client.chat.completions.create(model="built-in", messages=MESSAGES, temperature=0, **options)


def test_an_answer_has_the_form_that_the_package_declares(client):
    raw = client.chat.completions.with_raw_response.create(model="built-in", messages=MESSAGES, temperature=0)
    body = json.loads(raw.text)
    answer = openai.types.chat.ChatCompletion.model_validate(body, strict=True)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content
    assert answer.choices[0].message.reasoning_content
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0
    assert answer.usage.secateur["evicted_tokens"] >= 0


def test_a_stream_is_the_answer_in_pieces(client):
    whole = chat(client)
    pieces = {"content": "", "reasoning_content": ""}
    for chunk in chat(client, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            for name in pieces:
                pieces[name] += getattr(choice.delta, name, None) or ""
        usage = chunk.usage
    assert pieces["content"] == whole.choices[0].message.content
    assert pieces["reasoning_content"] == whole.choices[0].message.reasoning_content
    assert usage.total_tokens == whole.usage.total_tokens


def test_an_answer_is_parsed_into_a_model_of_pydantic(client):
    pydantic = pytest.importorskip("pydantic")

    class Answer(pydantic.BaseModel):
        value: int = pydantic.Field(ge=0, le=9)
        sure: bool
        kind: typing.Literal["sum", "difference"]

    answer = client.chat.completions.parse(model="built-in", messages=MESSAGES, temperature=0, response_format=Answer)
    assert isinstance(answer.choices[0].message.parsed, Answer)
    assert answer.choices[0].message.reasoning_content == chat(client).choices[0].message.reasoning_content
    response = client.responses.parse(model="built-in", input=EXAMPLE, temperature=0, text_format=Answer)
    assert response.output_parsed == answer.choices[0].message.parsed


def test_pruning_goes_through_extra_body(client):
    extra = {"secateur": {"budget": "tokens:24", "probe_every": 20, "window": 8, "events": "chunks"}}
    probes = [chunk.secateur for chunk in chat(client, stream=True, extra_body=extra) if not chunk.choices]
    assert any(probe["probe"]["evicted"] > 0 for probe in probes)
    assert chat(client, extra_body=extra).usage.secateur["evicted_tokens"] > 0


def test_metrics_are_what_prometheus_reads(client, address):
    """Read by the parser of Prometheus' own package, before and after a request."""
    parser = pytest.importorskip("prometheus_client.parser", reason="the package prometheus-client is not installed")

    def scraped():
        request = urllib.request.Request(f"{address}/metrics", headers={"authorization": "Bearer a key"})
        with urllib.request.urlopen(request) as response:
            assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
            families = list(parser.text_string_to_metric_families(response.read().decode()))
        assert all(family.name.startswith("secateur_") and family.documentation for family in families)
        assert {family.type for family in families} == {"counter", "gauge", "histogram"}
        assert len({family.name for family in families}) == len(families)
        for family in (family for family in families if family.type == "histogram"):
            counts = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
            total = [sample.value for sample in family.samples if sample.name.endswith("_count")]
            assert counts == sorted(counts) and counts[-1:] == total, family
            assert family.samples[len(counts) - 1].labels["le"] == "+Inf"
        return {(s.name, tuple(s.labels.items())): (f.type, s.value) for f in families for s in f.samples}

    before = scraped()
    usage = chat(client).usage
    after = scraped()
    assert before.keys() <= after.keys()
    grown = {key: value - before[key][1] for key, (kind, value) in after.items() if kind != "gauge" and key in before}
    assert all(value >= 0 for value in grown.values()), "a counter that falls"
    assert grown[("secateur_prompt_tokens_total", ())] == usage.prompt_tokens
    assert grown[("secateur_generation_tokens_total", ())] == usage.completion_tokens
    assert grown[("secateur_e2e_request_latency_seconds_count", ())] == 1


def test_errors_are_the_packages_own(client, address):
    with pytest.raises(openai.BadRequestError, match="response_format"):
        chat(client, response_format={"type": "yaml"})
    with pytest.raises(openai.BadRequestError) as error:
        long = [{"role": "user", "content": EXAMPLE * 200}]
        client.chat.completions.create(model="built-in", messages=long)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="another", messages=MESSAGES)
    with pytest.raises(openai.AuthenticationError):
        chat(openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0))


def function(name):
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": "?", "parameters": parameters}}


TOOLS = [function("get_weather"), function("get_time")]


def test_tools_are_called_and_their_results_answered(caller):
    messages = [{"role": "user", "content": "How warm is it in Paris?"}]
    raw = caller.chat.completions.with_raw_response.create(model="caller", messages=messages, tools=TOOLS)
    answer = openai.types.chat.ChatCompletion.model_validate(json.loads(raw.text), strict=True)
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    called = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]
    assert called == [("get_weather", {"city": "Paris", "days": 2}), ("get_time", {"zone": "Europe/Paris"})]
    # The package itself puts the deltas of a stream together.
    with caller.chat.completions.stream(model="caller", messages=messages, tools=TOOLS) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0]
    assert [(event.name, json.loads(event.arguments)) for event in done] == called
    assert final.finish_reason == "tool_calls" and final.message.content == message.content == "Let me look."
    # The answer goes back as it came, with the results of its calls.
    messages.append(message)
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "21"} for call in message.tool_calls]
    answer = caller.chat.completions.create(model="caller", messages=messages, tools=TOOLS)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content.startswith("It is 21 °C")
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        unknown = {"type": "function", "function": {"name": "get_news"}}
        caller.chat.completions.create(model="caller", messages=messages, tools=TOOLS, tool_choice=unknown)


def test_a_call_can_be_required(caller):
    tool = function("get_weather")
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    tool["function"]["parameters"] = schema | {"additionalProperties": False}
    named = {"type": "function", "function": {"name": "get_weather"}}
    # The results of a call are there: by itself the model would answer.
    call = {"id": "x", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "user", "content": "How warm is it in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "21"},
    ]
    asked = dict(model="caller", messages=messages, tools=[tool, function("get_time")])
    assert not caller.chat.completions.create(**asked).choices[0].message.tool_calls
    answer = caller.chat.completions.create(**asked, tool_choice=named).choices[0]
    assert answer.finish_reason == "tool_calls" and len(answer.message.tool_calls) == 1
    assert json.loads(answer.message.tool_calls[0].function.arguments)["city"] in ("Oslo", "Rome")


def test_a_response_has_the_form_that_the_package_declares(client):
    asked = {"model": "built-in", "input": EXAMPLE, "temperature": 0}
    raw = client.responses.with_raw_response.create(**asked)
    response = openai.types.responses.Response.model_validate(json.loads(raw.text), strict=True)
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.status == "completed" and response.output_text
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    assert response.usage.secateur["evicted_tokens"] >= 0
    said = chat(client).choices[0].message
    assert (response.output[0].content[0].text, response.output_text) == (said.reasoning_content, said.content)
    # Each event of a stream has the form that is declared for its type, and the texts are the same.
    pieces = {"response.reasoning_text.delta": "", "response.output_text.delta": ""}
    for event in client.responses.create(**asked, stream=True):
        type(event).model_validate(event.to_dict(), strict=True)
        if event.type in pieces:
            pieces[event.type] += event.delta
    assert event.type == "response.completed" and event.response.output_text == response.output_text
    assert list(pieces.values()) == [said.reasoning_content, said.content]
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text == said.content
    cut = client.responses.create(**asked, max_output_tokens=5)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"
    likely = client.responses.create(**asked, include=["message.output_text.logprobs"], top_logprobs=2)
    assert all(len(entry.top_logprobs) == 2 for entry in likely.output[-1].content[0].logprobs)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(**asked, previous_response_id=response.id)


def test_a_response_that_fails_in_its_stream_raises_an_error():
    for address in serving("--request-timeout", "1"):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="a key", max_retries=0)
        endless = {"ignore_eos": True, "secateur": {"policy": "full"}}
        with pytest.raises(openai.APIError, match="longer than this server allows"):
            for _ in client.responses.create(model="built-in", input=EXAMPLE, stream=True, extra_body=endless):
                pass


def test_responses_call_functions_and_answer_their_results(caller):
    tools = [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS]
    items = [{"role": "user", "content": "How warm is it in Paris?"}]
    response = caller.responses.create(model="caller", input=items, tools=tools)
    openai.types.responses.Response.model_validate(response.to_dict(), strict=True)
    calls = [item for item in response.output if item.type == "function_call"]
    called = [(call.name, json.loads(call.arguments)) for call in calls]
    assert called == [("get_weather", {"city": "Paris", "days": 2}), ("get_time", {"zone": "Europe/Paris"})]
    assert response.output_text == "Let me look."
    with caller.responses.stream(model="caller", input=items, tools=tools) as stream:
        final = stream.get_final_response()
    streamed = [item for item in final.output if item.type == "function_call"]
    assert [(call.name, json.loads(call.arguments)) for call in streamed] == called
    # The items go back as they came, with the results of the calls.
    items += response.output
    items += [{"type": "function_call_output", "call_id": call.call_id, "output": "21"} for call in calls]
    answer = caller.responses.create(model="caller", input=items, tools=tools)
    assert answer.output_text.startswith("It is 21 °C")
    # Agents list tools of OpenAI's own servers too.
    hosted = [*tools, {"type": "web_search"}]
    assert caller.responses.create(model="caller", input=items, tools=hosted).output_text == answer.output_text


def test_models_are_listed(client):
    assert [model.id for model in client.models.list().data] == ["built-in"]
    assert client.models.retrieve("built-in").owned_by == "secateur"


def test_completions_continue_a_text(client):
    further = {"ignore_eos": True}
    answer = client.completions.create(model="built-in", prompt="a is 3.", max_tokens=4, temperature=0, extra_body=further)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 4


def test_metrics_can_be_read(address):
    call = urllib.request.Request(f"{address}/metrics", headers={"x-api-key": "a key"})
    with urllib.request.urlopen(call) as reply:
        assert b"secateur_num_requests_running 0" in reply.read()


def test_the_llm_command_answers(address, tmp_path):
    pytest.importorskip("llm", reason="the package llm is not installed")
    models = f"- model_id: secateur\n  model_name: built-in\n  api_base: {address}/v1\n  api_key_name: secateur\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    (tmp_path / "keys.json").write_text(json.dumps({"secateur": "a key"}))
    command = [pathlib.Path(sys.executable).with_name("llm"), "-m", "secateur", "-o", "temperature", "0", "-u", EXAMPLE]
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr
