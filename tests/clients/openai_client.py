"""The openai package against a running server: python openai_client.py URL"""

import math
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="unused", max_retries=0)
texts = ["What is a mixture of experts?", "I lost my card", "Hello"]


def embed(**options):
    return client.embeddings.create(model="any", **options)


def close(a, b, tolerance=1e-5):
    return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b))


# The client asks for Base64 unless told otherwise; both must be the same numbers.
packed = embed(input=texts)
plain = embed(input=texts, encoding_format="float")
assert [entry.index for entry in packed.data] == [0, 1, 2]
for a, b in zip(packed.data, plain.data):
    assert close(a.embedding, b.embedding)
    assert abs(math.hypot(*a.embedding) - 1) < 1e-5
assert packed.usage.prompt_tokens == packed.usage.total_tokens > len(texts)

# One text, and fewer dimensions, scaled to unit length again.
one = embed(input=texts[1]).data
assert len(one) == 1 and close(one[0].embedding, packed.data[1].embedding)
cut = embed(input=texts[1], dimensions=16).data[0].embedding
assert len(cut) == 16 and abs(math.hypot(*cut) - 1) < 1e-5
length = math.hypot(*one[0].embedding[:16])
assert close(cut, [x / length for x in one[0].embedding[:16]])

models = client.models.list().data
assert [model.id for model in models] == [packed.model]

# Mistakes arrive as the client's own exceptions, with a message.
for options in [{"input": ""}, {"input": []}, {"input": "a", "dimensions": 100000}, {"input": [[5000000]]}]:
    try:
        embed(**options)
    except openai.BadRequestError as error:
        assert error.status_code == 400 and error.body["message"], error.body
    else:
        raise AssertionError(f"{options} was answered")
try:
    client.chat.completions.create(model="any", messages=[{"role": "user", "content": "hello"}])
except openai.NotFoundError as error:
    assert "/v1/chat/completions" in error.body["message"], error.body
else:
    raise AssertionError("an encoder does not chat")

print("all checks hold")
