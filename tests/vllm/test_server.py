"""A judge model behind vLLM's own server answers over HTTP, and says what transformers says."""

import json
import urllib.request

import torch
from conftest import noisy_policy

from llm.judge.serve import command, folder_name, serving

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}judge:"
QUESTION = "Which of the following summaries does a better job?"


def _quick(*asked):
    """The server as it is started, compiling nothing and with little memory."""
    return [*command(*asked), "--enforce-eager", "--kv-cache-memory-bytes", str(2**29)]


def test_a_local_judge_answers_over_http(small_tokenizer, runtime, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "judge"
    model = noisy_policy(folder, 384, eos=0, pad=1, seed=5)
    tokenizer = small_tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE, raising=False)
    tokenizer.save_pretrained(folder)
    message = [{"role": "user", "content": QUESTION}]
    body = {"model": folder_name(folder), "messages": message, "max_tokens": 16, "temperature": 0}
    with serving(folder, runtime, tmp_path / "logs", _quick) as url:
        request = urllib.request.Request(
            f"{url}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=120) as response:
            answer = json.load(response)
    said = answer["choices"][0]["message"]["content"]
    ids = torch.tensor([tokenizer.encode(f"user: {QUESTION}\njudge:")])
    plain = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16, pad_token_id=1
    )[0, ids.shape[1] :]
    assert said == tokenizer.decode(plain, skip_special_tokens=True)
    assert answer["usage"]["prompt_tokens"] == ids.shape[1]
