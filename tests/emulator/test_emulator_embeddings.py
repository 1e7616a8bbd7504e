"""Vectors: batches and synchronous calls of embedding models, and what the vectors are good for."""

from __future__ import annotations

import json
import math
import time

import orjson
import pytest
from google.genai import errors, types
from google.genai._common import ExperimentalWarning
from test_emulator_shapes import assert_shape

from runner.emulator import embeddings

MODEL = "gemini-embedding-001"
PINNED = [0.0, -0.0325818, 0.0, 0.0977453, -0.0651635, 0.0325818]
SENTENCES = [
    "The invoice for March was charged twice to my credit card.",
    "My login fails with an unknown password error.",
    "The elevator on the third floor is stuck again.",
    "How do I bake sourdough bread at home?",
    "The stock market fell sharply on Tuesday.",
    "Our cat refuses to eat dry food.",
    "A new bridge over the river opens next month.",
    "The printer in the office prints blank pages.",
    "Please cancel my subscription before the renewal date.",
    "The weather in Norway is cold and rainy in autumn.",
    "She plays the violin in a string quartet.",
    "The train to Berlin was delayed by two hours.",
    "Photosynthesis turns sunlight into chemical energy.",
    "The museum shows paintings of the Dutch masters.",
    "Install the driver and restart your computer.",
    "He won the marathon in a record time.",
    "The soup needs more salt and pepper.",
    "Quantum computers use qubits instead of bits.",
    "The lawyer filed an appeal against the verdict.",
    "Children learn languages faster than adults.",
]
QUERIES = {
    "I was charged two times for one invoice": 0,
    "cannot log in, password wrong": 1,
    "recipe for baking bread": 3,
    "delayed train in Berlin": 11,
    "printing gives blank paper pages": 7,
    "cancel subscriptions": 8,
    "restarting the computer after installing drivers": 14,
}


def embed_line(key, text, **more):
    return {"key": key, "request": {"content": {"parts": [{"text": text}]}, **more}}


def vector(text, size=3072, model=f"models/{MODEL}", **more):
    request = {"content": {"parts": [{"text": text}]}, "outputDimensionality": size, **more}
    return embeddings.response(request, model)["embedding"]["values"]


def length(values):
    return math.sqrt(sum(value * value for value in values))


def cosine(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True)) / length(one) / length(other)


def create(driver, lines, model=MODEL):
    file = driver.upload(lines)
    body = {"batch": {"inputConfig": {"file_name": file.name}, "displayName": "job"}}
    return driver.http("POST", f"models/{model}:asyncBatchEmbedContent", body)


def run(driver, lines):
    status, created = create(driver, lines)
    assert status == 200, created
    operation = driver.wait(created["name"])
    if "output" not in operation["metadata"]:
        return operation, []
    return operation, [json.loads(row) for row in driver.output(operation).splitlines()]


# ------------------------------------------------------------ batches


def test_a_file_of_texts_comes_back_as_vectors(emulator):
    operation, rows = run(
        emulator,
        [
            embed_line("a", "Hello there, reader.", output_dimensionality=8, task_type="RETRIEVAL_QUERY"),
            embed_line(
                "b", "Hello.", outputDimensionality=4, taskType="RETRIEVAL_DOCUMENT", title="Greeting"
            ),
        ],
    )
    assert_shape("operation_succeeded_embeddings", operation)
    for row in rows:
        assert_shape("line_embedding", row)
    assert [(row["key"], len(row["response"]["embedding"]["values"])) for row in rows] == [("a", 8), ("b", 4)]
    assert [row["response"]["tokenCount"] for row in rows] == ["5", "2"]


def test_the_sdk_makes_sees_lists_cancels_and_deletes_embedding_jobs(start):
    driver = start({"timing": {"pending_s": 60}})
    file = driver.upload([embed_line("a", "x")])
    with pytest.warns(ExperimentalWarning):
        job = driver.client.batches.create_embeddings(
            model=MODEL, src={"file_name": file.name}, config={"display_name": "of vectors"}
        )
    listed = list(driver.client.batches.list())
    assert [(one.name, one.display_name, one.model) for one in listed] == [
        (job.name, "of vectors", f"models/{MODEL}")
    ]
    driver.client.batches.cancel(name=job.name)
    assert driver.client.batches.get(name=job.name).state == types.JobState.JOB_STATE_CANCELLED
    driver.client.batches.delete(name=job.name)
    assert list(driver.client.batches.list()) == []


def test_inline_texts_come_back_inline(emulator):
    source = types.EmbedContentBatch(
        contents=["One text.", "Another."], config={"output_dimensionality": 5, "task_type": "CLUSTERING"}
    )
    with pytest.warns(ExperimentalWarning):
        job = emulator.client.batches.create_embeddings(model=MODEL, src={"inlined_requests": source})
    operation = emulator.wait(job.name)
    assert operation["metadata"]["@type"].endswith(".EmbedContentBatch")
    found = emulator.client.batches.get(name=job.name).dest.inlined_embed_content_responses
    assert [len(one.response.embedding.values) for one in found] == [5, 5]
    assert [one.response.token_count for one in found] == [3, 2]
    assert found[0].response.embedding.values == vector("One text.", 5, taskType="CLUSTERING")


def test_inline_embeddings_carry_their_metadata(emulator):
    requests = [{**embed_line("", "x"), "metadata": {"key": "r1"}}]
    del requests[0]["key"]
    body = {"batch": {"displayName": "j", "inputConfig": {"requests": {"requests": requests}}}}
    _, created = emulator.http("POST", f"models/{MODEL}:asyncBatchEmbedContent", body)
    output = emulator.wait(created["name"])["metadata"]["output"]
    assert output["inlinedResponses"]["inlinedResponses"][0]["metadata"] == {"key": "r1"}


TEXT = {"content": {"parts": [{"text": "a"}]}}
REFUSED = [
    ({"contents": [{"parts": [{"text": "a"}]}]}, "no such field: 'contents'"),
    ({**TEXT, "embed_content_config": {}}, "no such field: 'embed_content_config'"),
    ({**TEXT, "generationConfig": {}}, "no such field: 'generationConfig'"),
    ({**TEXT, "autoTruncate": True}, "no such field: 'autoTruncate'"),
    ({}, "content is not specified"),
    ({"content": {"parts": []}}, "parts must not be empty"),
    ({"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "aGk="}}]}}, "not supported by"),
    ({**TEXT, "taskType": "SEARCH"}, "expected one of"),
    ({**TEXT, "outputDimensionality": 0}, "range [1, 3072]"),
    ({**TEXT, "output_dimensionality": 3073}, "range [1, 3072]"),
    ({**TEXT, "outputDimensionality": 8, "output_dimensionality": 8}, "given twice"),
]


@pytest.mark.parametrize(("request_body", "words"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_a_bad_line_refuses_the_whole_job(shared, request_body, words):
    status, body = create(shared, [embed_line("a", "x"), {"key": "b", "request": request_body}])
    assert (status, body["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert body["error"]["message"].startswith("Error on line 2: invalid JSON, near column ")
    assert words in body["error"]["message"]
    assert shared.http("GET", "batches")[1] == {}


def test_the_two_kinds_of_models_and_lines_do_not_mix(emulator, line):
    assert create(emulator, [line("a", "x")])[0] == 400
    assert create(emulator, [embed_line("a", "x")], emulator.model)[0] == 404
    assert create(emulator, [embed_line("a", "x")], "text-embedding-004")[0] == 404
    file = emulator.upload([embed_line("a", "x")])
    with pytest.raises(errors.ClientError) as caught:
        emulator.client.batches.create(model=emulator.model, src=file.name)
    assert caught.value.code == 400
    assert emulator.http("POST", f"models/{MODEL}:generateContent", {})[0] == 404
    assert emulator.http("POST", f"models/{emulator.model}:embedContent", TEXT)[0] == 404


def test_an_empty_text_fails_its_row_alone_and_a_call_as_a_whole(emulator):
    _, rows = run(emulator, [embed_line("a", ""), embed_line("b", "x")])
    message = "EmbedContentRequest.content contains an empty Part."
    assert rows[0] == {"key": "a", "error": {"code": 3, "message": message}}
    assert "response" in rows[1]
    status, body = emulator.http("POST", f"models/{MODEL}:embedContent", embed_line("", "")["request"])
    assert (status, body["error"]["message"]) == (400, message)


# ------------------------------------------------------------ synchronous calls


def test_a_call_gives_what_a_row_gives(emulator):
    request = embed_line("a", "The same text.", outputDimensionality=16, taskType="QUESTION_ANSWERING")[
        "request"
    ]
    _, rows = run(emulator, [{"key": "a", "request": request}])
    named = {**request, "model": f"models/{MODEL}"}
    for body in (request, named):
        status, answer = emulator.http("POST", f"models/{MODEL}:embedContent", body)
        assert (status, answer) == (200, {"embedding": rows[0]["response"]["embedding"]})
    answer = emulator.http("POST", f"models/{MODEL}:batchEmbedContents", {"requests": [named, named]})[1]
    assert answer == {"embeddings": [rows[0]["response"]["embedding"]] * 2}


def test_the_sdk_embeds(emulator):
    found = emulator.client.models.embed_content(
        model=MODEL, contents=["One text.", "Another."], config={"output_dimensionality": 8}
    )
    assert [one.values for one in found.embeddings] == [vector("One text.", 8), vector("Another.", 8)]
    newer = emulator.client.models.embed_content(model="gemini-embedding-2", contents=["One text."])
    assert len(newer.embeddings[0].values) == 3072


def test_bad_calls_name_their_place(emulator):
    call = f"models/{MODEL}:batchEmbedContents"
    good = {**TEXT, "model": f"models/{MODEL}"}
    for bad, place in (
        (TEXT, "* requests[1].model: "),
        ({**good, "model": "models/gemini-embedding-2"}, "* requests[1].model: "),
        ({**good, "outputDimensionality": 0}, "* requests[1].output_dimensionality: "),
    ):
        status, body = emulator.http("POST", call, {"requests": [good, bad]})
        assert status == 400
        assert body["error"]["message"].startswith(place)


def test_a_generated_answer_is_the_same_in_a_call_and_in_a_row(emulator):
    path = emulator.folder / "image.png"
    path.write_bytes(b"pixels")
    file = emulator.client.files.upload(file=str(path))
    part = {"fileData": {"fileUri": file.uri, "mimeType": "image/png"}}
    request = {"contents": [{"role": "user", "parts": [part, {"text": "What is this?"}]}]}
    _, rows = emulator.run([{"key": "a", "request": request}])
    call = f"models/{emulator.model}:generateContent"
    for body in (request, {**request, "model": f"models/{emulator.model}"}):
        assert emulator.http("POST", call, body) == (200, rows[0]["response"])
    emulator.client.files.delete(name=file.name)
    status, body = emulator.http("POST", call, request)
    assert (status, body["error"]["status"]) == (403, "PERMISSION_DENIED")


# ------------------------------------------------------------ faults

FAULTS = [
    ("row_error", [{"key": "a", "error": {"code": 8, "message": "quota"}}]),
    ("missing", []),
    ("null_line", [None]),
    ("empty_embedding", [{"key": "a", "response": {"embedding": {}, "tokenCount": "2"}}]),
]


@pytest.mark.parametrize(("kind", "expected"), FAULTS)
def test_rows_are_hit(start, kind, expected):
    options = {"code": 8, "message": "quota"} if kind == "row_error" else {}
    driver = start({"rows": [{"kind": kind, "match": "hit", **options}]})
    assert run(driver, [embed_line("a", "hit me")])[1] == expected
    assert len(run(driver, [embed_line("a", "not me")])[1][0]["response"]["embedding"]["values"]) == 3072


def test_a_vector_may_come_short(start):
    driver = start({"rows": [{"kind": "short_embedding"}]})
    row = run(driver, [embed_line("a", "some text", outputDimensionality=8)])[1][0]
    assert row["response"]["embedding"]["values"] == vector("some text", 4)


def test_lines_are_hit(start):
    lines = [embed_line(f"r{n}", f"Text {n}.", outputDimensionality=2) for n in range(9)]
    kinds = ("duplicate", "extra_line", "unknown_fields")
    driver = start({"rows": [{"kind": kind, "keys": [f"r{n}"]} for n, kind in enumerate(kinds)]})
    rows = run(driver, lines)[1]
    assert [row["key"] for row in rows[:3]] == ["r0", "r0", "r1"]
    assert rows[3]["key"].startswith("unasked-")
    assert rows[4]["response"]["embedding"]["emulatorField"] == "NEW_VALUE"
    driver = start({"rows": [{"kind": "shuffled"}]}, folder="shuffled")
    keys = [row["key"] for row in run(driver, lines)[1]]
    assert keys != sorted(keys) == [line["key"] for line in lines]


def test_kinds_of_the_other_task_neither_strike_nor_stand_in_the_way(start, line):
    rules = [{"kind": "truncated"}, {"kind": "empty_embedding"}, {"kind": "row_error"}]
    driver = start({"rows": rules})
    assert run(driver, [embed_line("a", "x")])[1][0]["response"]["embedding"] == {}
    assert driver.run([line("a", "x")])[1][0]["response"]["candidates"][0]["finishReason"] == "MAX_TOKENS"


def test_calls_are_hit_as_rows_are(start, line):
    rules = [
        {"kind": "missing", "match": "lost"},
        {"kind": "truncated", "every": 1},
        {"kind": "row_error", "code": 8, "message": "quota", "match": "hit", "first_attempts": 2},
        {"kind": "blocked_safety", "match": "gun"},
    ]
    driver = start({"rows": rules})
    call = f"models/{driver.model}:generateContent"

    def ask(text):
        return driver.http("POST", call, line("", text)["request"])

    assert [ask("hit me")[0] for _ in range(3)] == [429, 429, 200]
    assert ask("a gun")[1]["candidates"][0]["finishReason"] == "SAFETY"
    assert ask("lost")[1]["candidates"][0]["finishReason"] == "STOP"
    driver = start({"rows": [{"kind": "row_error", "code": 9}]}, folder="other")
    status, body = driver.http("POST", f"models/{MODEL}:embedContent", TEXT)
    assert (status, body["error"]["status"]) == (400, "FAILED_PRECONDITION")


# ------------------------------------------------------------ vectors


@pytest.mark.parametrize("size", [256, 768, 3072])
def test_a_search_finds_the_right_sentence(size):
    documents = [vector(text, size, taskType="RETRIEVAL_DOCUMENT") for text in SENTENCES]
    for query, wanted in QUERIES.items():
        asked = vector(query, size, taskType="RETRIEVAL_QUERY")
        nearness = [cosine(asked, document) for document in documents]
        assert nearness.index(max(nearness)) == wanted, query


@pytest.mark.parametrize("size", [64, 768, 3072])
def test_near_duplicates_are_near_and_others_are_not(size):
    changed = [text.replace("The", "This").replace("my", "our").upper() for text in SENTENCES]
    near = [cosine(vector(a, size), vector(b, size)) for a, b in zip(SENTENCES, changed, strict=True)]
    documents = [vector(text, size) for text in SENTENCES]
    far = [cosine(documents[i], documents[j]) for i in range(len(documents)) for j in range(i)]
    assert min(near) > max(far)
    assert sum(far) / len(far) < 0.2


def test_only_whole_vectors_of_the_older_model_have_length_one():
    text = SENTENCES[0]
    assert length(vector(text)) == pytest.approx(1, abs=1e-5)
    for size in (1, 768, 1536):
        cut = vector(text, size)
        assert cut == vector(text)[:size]
        assert length(cut) < 0.99
        assert length(vector(text, size, "models/gemini-embedding-2")) == pytest.approx(1, abs=1e-5)


def test_vectors_are_the_same_on_every_machine():
    values = vector("The invoice was charged twice, naïve Zoë said.", 6, taskType="CLASSIFICATION")
    assert values == PINNED
    assert vector("a b", 4) == vector("b A", 4)


def test_the_task_moves_a_vector_a_little_and_only_with_the_older_model():
    plain, query = vector(SENTENCES[0]), vector(SENTENCES[0], taskType="RETRIEVAL_QUERY")
    assert 0.9 < cosine(plain, query) < 1
    newer = "models/gemini-embedding-2"
    assert vector("x", 4, newer) == vector("x", 4, newer, taskType="RETRIEVAL_QUERY")


@pytest.mark.parametrize("text", ["😀", "  ", "東京の天気は晴れです", "\ud800", "a" * 5000])
def test_any_text_has_a_vector(text):
    assert length(vector(text)) == pytest.approx(1, abs=1e-5)


def test_scripts_without_spaces_are_compared_too():
    weather, again, other = "東京の天気は晴れです", "大阪の天気は晴れです", "請求書が二回届きました"
    assert cosine(vector(weather), vector(again)) > 0.5 > cosine(vector(weather), vector(other))


def test_texts_beyond_the_limit_are_cut_without_a_word():
    words = " ".join(f"word{n}" for n in range(3000))
    found = embeddings.response({"content": {"parts": [{"text": words}]}}, f"models/{MODEL}")
    assert found["tokenCount"] == "2048"
    assert vector(words) == vector(words[:8192])


def test_media_are_embedded_by_the_newer_model_by_their_bytes(emulator):
    def ask(data):
        part = {"inlineData": {"mimeType": "image/png", "data": data}}
        body = {"content": {"parts": [part]}, "outputDimensionality": 8}
        return emulator.http("POST", "models/gemini-embedding-2:embedContent", body)[1]

    assert ask("aGk=") == ask("aGk=") != ask("aGo=")
    assert ask("aGk=")["usageMetadata"]["promptTokenCount"] == 258


def test_vectors_are_made_quickly():
    """A floor well under the measured speed, so that a slow machine does not fail it."""
    texts = [
        " ".join(SENTENCES[(n * k) % 20] for k in range(1, 45))[:2048] + f" number {n}" for n in range(300)
    ]
    best = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        for text in texts:
            orjson.dumps(vector(text, 768))
        best = max(best, len(texts) / (time.perf_counter() - begin))
    assert best > 150
