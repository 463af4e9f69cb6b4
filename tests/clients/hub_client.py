"""huggingface_hub's InferenceClient against a running server: python hub_client.py URL"""

import math
import sys

from huggingface_hub import InferenceClient

url = sys.argv[1]
texts = ["What is a mixture of experts?", "I lost my card"]

# The built-in model's own task is embedding: the client posts to the server's address.
for address in [url, url + "/embed"]:
    client = InferenceClient(model=address)
    one = client.feature_extraction(texts[0])
    assert one.shape[0] == 1 and one.ndim == 2, one.shape
    assert abs(math.hypot(*one[0]) - 1) < 1e-5
    raw = client.feature_extraction(texts[0], normalize=False)
    assert abs(math.hypot(*raw[0]) - 1) > 1e-3
    cut = client.feature_extraction(texts[0], truncate=True, truncation_direction="left")
    assert cut.shape == one.shape
several = client.feature_extraction(texts, dimensions=16)
assert several.shape == (2, 16), several.shape
client = InferenceClient(base_url=url)
assert abs(client.feature_extraction(texts[0]) - one).max() < 1e-5

classifier = InferenceClient(model=url + "/classify")
labels = classifier.text_classification(texts[1])
assert len(labels) == 77, len(labels)
assert labels[0].label == "lost_or_stolen_card", labels[0]
assert abs(sum(entry.score for entry in labels) - 1) < 1e-4
top = classifier.text_classification(texts[1], top_k=3)
assert [entry.label for entry in top] == [entry.label for entry in labels[:3]]
single = classifier.text_classification(texts[1], top_k=1, function_to_apply="sigmoid")
assert single[0].label == labels[0].label and 0 < single[0].score < 1

similar = InferenceClient(model=url).sentence_similarity(texts[1], ["My card is gone", "The weather is nice"])
assert similar[0] > similar[1], similar

print("all checks hold")
